"""Parameters that are divided: gathered in groups, again for the backward pass, and their gradients."""

import gc

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike._private.dtensors import WeakStorage, storage_of
from fluxlike._private.fake_ranks import fake_mesh
from fluxlike.placement.mesh.groups import grouped
from tests.distributed.agreeing import PLANS, differences
from tests.distributed.ranks import run


def perceptron():
    return fl.Chain(fl.Dense(4, 6, fl.tanh), fl.Dense(6, 6, fl.tanh), fl.Dense(6, 2))


class Product(torch.autograd.Function):
    """A function that first uses a parameter where no graph is recorded."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w.sum()

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w.sum(), torch.ones_like(w) * (g * x).sum()


def first_without_graph(model, x):
    with torch.no_grad():
        scale = model.layers[0](x).abs().mean()
    return (model(x) / scale).square().mean()


def first_in_inference(model, x):
    with torch.inference_mode():
        scale = float(model.layers[0](x).abs().mean())
    return (model(x) / scale).square().mean()


def first_in_a_function(model, x):
    return model(Product.apply(x, model.layers[0].weight)).square().mean()


def used_twice(model, x):
    layer = model.layers[1]
    return (layer(layer(model.layers[0](x))) @ model.layers[2].weight.T).square().mean()


def called_twice(model, x):
    return (model(x) * fl.stop_gradient(model(x) + 1)).sin().mean()


def penalised(model, x):
    slope = fl.gradient(lambda x: model(x).square().sum(), x)
    return model(x).square().mean() + slope.square().mean()


def of_parts(model, x):  # cotangents of every kind: averages, sums, whole ones
    y = model(x)
    return y.mean() + (model.layers[2].bias * y.mean(0)).sum() + model.layers[1].bias.sin().sum()


def greatest(model, x):
    return model(x).amax(0).sin().sum()


USES = [
    first_without_graph, first_in_inference, first_in_a_function, used_twice, called_twice, penalised,
    of_parts, greatest,
]  # fmt: skip


def of_uses():
    """What is wrong with gradients, by the use of the model, the plan and what is frozen."""
    torch.set_default_dtype(torch.float64)
    wrong = {}
    for f in USES:
        for plan in PLANS:
            for wrt in (None, ".layers[1]"):
                torch.manual_seed(0)
                model, x = perceptron(), torch.randn(6, 4)
                over = fl.to_device(model, d.mesh(), PLANS[plan]()), d.shard_batch(x, d.mesh())
                expected = fl.withgradient(f, model, x, wrt=wrt)
                found = differences(fl.withgradient(f, *over, wrt=wrt), expected)
                if found:
                    wrong[f.__name__, plan, wrt] = found
    return wrong


@pytest.mark.parametrize("ranks", [2, 3])
def test_however_a_model_uses_its_parameters_their_gradients_are_those_of_one_process(ranks):
    assert run(of_uses, ranks) == [{}] * ranks


def alone():
    mesh = d.mesh(data=1, model=2)
    torch.manual_seed(0)
    wrong = {}
    for f in USES:
        model, x = fl.f64(perceptron()), torch.randn(6, 4, dtype=torch.float64)
        expected = fl.withgradient(f, model, x)
        over = fl.to_device(model, mesh, d.shard()), d.shard_batch(x, mesh)
        found = differences(fl.withgradient(f, *over), expected)
        if found:
            wrong[f.__name__] = found
    return wrong


def test_a_data_axis_of_one_rank_gives_the_gradients_of_one_process():
    assert run(alone, 2) == [{}, {}]


def test_a_tied_parameter_is_in_a_group_once_and_one_that_is_divided_twice_along_an_axis_in_none():
    with fake_mesh((2, 2), ("data", "model"), "cpu") as mesh:
        tied, other, twice = (
            fl.to_device(torch.ones(4, 4), mesh, lambda path, x, mesh, axes=axes: axes)
            for axes in ({0: 0}, {0: 0, 1: 1}, {0: 0, 1: 0})
        )
        (group,) = grouped([tied, other, twice, tied])
        assert [id(member.handle) for member in group.members] == [id(tied), id(other)]


def complex_or_empty():
    torch.manual_seed(0)
    model = {
        "w": torch.randn(4, 3, dtype=torch.complex128),
        "v": torch.randn(4, dtype=torch.float64),
        "none": torch.randn(0, 3, dtype=torch.float64),
    }

    def f(m):
        turned = m["w"].conj() * m["w"] + torch.view_as_real(m["w"]).sum()
        return turned.real.sum() + m["v"].sin().sum() + m["none"].sum()

    expected = fl.gradient(f, model)
    over = fl.to_device(model, d.mesh(), d.shard(at_least=0))
    return differences(fl.gradient(f, over), expected)


def test_views_of_complex_parameters_and_empty_ones_have_the_gradients_of_one_process():
    assert run(complex_or_empty, 2) == [[], []]


def pulled():
    """Several pulls through one forward pass, of which some reach a part of the parameters."""
    torch.set_default_dtype(torch.float64)
    wrong = {}
    for plan in PLANS:
        torch.manual_seed(0)
        model, x = {"a": torch.randn(3, 3), "b": torch.randn(3, 3)}, torch.randn(6, 3)

        def f(m, x):
            return (x @ m["a"]).sin().sum(), (x @ m["b"]).sin().sum()

        def pulls(model, x):
            _, back = fl.pullback(lambda m: f(m, x), model)
            one = torch.ones(())
            return [back(c) for c in ((one, one), (2 * one, None), (None, 3 * one), (one, one))]

        expected = pulls(model, x)
        over = fl.to_device(model, d.mesh(), PLANS[plan]()), d.shard_batch(x, d.mesh())
        found = differences(pulls(*over), expected)
        if found:
            wrong[plan] = found
    return wrong


def test_each_pull_of_a_pullback_gives_the_gradients_of_its_cotangents():
    assert run(pulled, 2) == [{}, {}]


class Cyclic:
    def __init__(self, x):
        self.x, self.me = x, self


def collecting():
    """Gradients where one rank frees memory at once and the other one late; the collectives of each."""
    gc.collect()
    before = gc.get_threshold()
    gc.disable() if d.rank() else gc.set_threshold(5)
    try:
        torch.manual_seed(0)
        model, x = fl.f64(perceptron()), torch.randn(6, 4, dtype=torch.float64)

        def f(model, x):
            for _ in range(3):
                Cyclic(model.layers[0].weight.contiguous())
            return model(x).square().mean() + model.layers[0].weight.square().mean()

        expected = fl.gradient(f, model, x)
        over = fl.to_device(model, d.mesh(), d.shard()), d.shard_batch(x, d.mesh())
        with CommDebugMode() as sent:
            grads = fl.gradient(f, *over)
        return differences(grads, expected), sent.get_total_counts()
    finally:
        gc.enable()
        gc.set_threshold(*before)


def test_what_is_gathered_does_not_depend_on_when_a_rank_collects_garbage():
    (wrong, sent), (also, as_many) = run(collecting, 2)
    assert (wrong, also) == ([], [])
    assert sent == as_many


def loop_over_time():
    cell, x = fl.f64(fl.RNNCell(4, 4)), torch.randn(6, 4, dtype=torch.float64)

    def f(cell, x):
        h = torch.zeros_like(x)
        for _ in range(5):
            h = cell(x, h)
            h = h[0] if isinstance(h, tuple) else h
        return h.square().mean()

    over = fl.to_device(cell, d.mesh(), d.shard()), d.shard_batch(x, d.mesh())
    with CommDebugMode() as sent:
        grads = fl.gradient(f, *over)
    counts = {str(name): n for name, n in sent.get_comm_counts().items()}
    return differences(grads, fl.gradient(f, cell, x)), counts


def test_a_loop_over_time_gathers_its_parameters_twice_however_many_steps_it_has():
    for wrong, counts in run(loop_over_time, 2):
        assert wrong == []
        assert sum(n for name, n in counts.items() if "all_gather" in name) == 2


def kept_after(wrt):
    """How many numbers of whole parameters autograd keeps between the passes."""
    torch.manual_seed(0)
    model = fl.to_device(fl.Chain(*[fl.Dense(64, 64, fl.tanh) for _ in range(4)]), d.mesh(), d.shard())
    kept = []

    def look(x: Tensor) -> Tensor:
        gc.collect()
        kept.extend(t for t in gc.get_objects() if type(t) is Tensor and t.shape == (64, 64))
        return x

    class Look(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            return look(g)

    x = d.shard_batch(torch.ones(2, 64), d.mesh())
    fl.gradient(lambda m, x: Look.apply(m(x).square().mean()), model, x, wrt=wrt)
    return len(kept)


@pytest.mark.parametrize("wrt", [None, ".layers[0]"])
def test_between_the_passes_no_parameter_is_whole_frozen_or_not(wrt):
    assert run(kept_after, 2, wrt) == [0, 0]


def test_a_place_of_memory_that_is_known_is_not_given_to_another():
    x = torch.ones(1000)
    place, known = storage_of(x), WeakStorage(x)
    del x
    others = [torch.ones(1000) for _ in range(100)]
    assert place not in map(storage_of, others)
    del known
