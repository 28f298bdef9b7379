"""Functions of tensors over a mesh that nothing knows of: what is said, and what to write instead."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fluxlike as fl
from fluxlike import distributed as d
from tests.distributed.ranks import run


def over_mesh():
    model = fl.to_device(fl.Dense(4, 4), d.mesh())
    return model, d.shard_batch(torch.randn(6, 4), d.mesh())


def words(f):
    model, x = over_mesh()
    try:
        fl.gradient(lambda model: f(model, x).sum(), model)
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def added(model, x):
    return torch.zeros(6, 4).add_(model(x))


def augmented(model, x):
    total = torch.zeros(6, 4)
    total += model(x)
    return total


def assigned(model, x):
    total = torch.zeros(6, 4)
    total[:] = model(x)
    return total


@pytest.mark.parametrize(("f", "what"), [(added, "x.add_(…)"), (assigned, "x[…] = value")])
def test_a_value_that_autograd_follows_is_not_written_into_a_plain_tensor(f, what):
    for kind, text in run(words, 2, f):
        assert kind == "TypeError"
        assert re.match(rf"{re.escape(what)}: the value is over a mesh.*\(6, 4\); make x from data", text)


def sums():
    model, x = over_mesh()
    found = fl.gradient(lambda model: augmented(model, x).square().sum(), model)
    model, x = fl.to_device((model, x), "cpu")
    expected = fl.gradient(lambda model: model(x).square().sum(), model)
    return fl.tree.allclose(fl.to_device(found, "cpu"), expected)


def test_a_sum_that_starts_as_a_plain_tensor_is_followed():
    assert run(sums, 2) == [True, True]


@torch.library.custom_op("fluxlike_tests::own", mutates_args=())
def own(x: Tensor) -> Tensor:
    return x * 2


@own.register_fake
def _(x):
    return torch.empty_like(x)


own.register_autograd(lambda ctx, g: 2 * g)


class OwnBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        return own(g)


def unknown_forward(model, x):
    return own(model(x))


def unknown_backward(model, x):
    return OwnBackward.apply(model(x))


@pytest.mark.parametrize(("f", "name"), [(unknown_forward, "own"), (unknown_backward, "derivative")])
def test_a_function_without_a_rule_says_what_to_write(f, name):
    for kind, text in run(words, 2, f):
        assert kind == "NotImplementedError", text
        assert name in text
        assert "fluxlike.distributed.on_rows(f, model, x)" in text


def by_rows():
    model, x = over_mesh()

    def ours(model, x):
        return own(F.softplus(torch.vmap(model)(x))).sum(1)

    found = fl.withgradient(lambda m: d.on_rows(ours, m, x).mean(), model)
    plain = fl.to_device((model, x), "cpu")
    expected = fl.withgradient(lambda m: ours(m, plain[1]).mean(), plain[0])
    return fl.tree.allclose(fl.to_device(found, "cpu"), expected)


def test_what_the_message_says_to_write_gives_the_numbers_of_one_process():
    assert run(by_rows, 2) == [True, True]


def over_two_meshes(model, x):
    return model(d.shard_batch(torch.ones(6, 4), d.mesh(data=1, model=2)))


def test_a_computation_over_two_meshes_says_to_bring_all_to_one():
    for kind, text in run(words, 2, over_two_meshes):
        assert kind == "ValueError"
        assert "bring all to it, to_device(tree, mesh, plan) and shard_batch(batch, mesh)" in text


def mapped_by_torch(model, x):
    return torch.func.vmap(lambda row: model(row))(x)


def test_torchs_vmap_is_told_of_ours():
    for kind, text in run(words, 2, mapped_by_torch):
        assert (kind, "write fluxlike.vmap" in text) == ("NotImplementedError", True), text
