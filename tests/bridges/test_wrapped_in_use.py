"""Models of the parity table in use: compiled steps, one vector of all parameters, text generation."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import nn
from torchvision_here import torchvision
from wrapped_models import TIMM, TRANSFORMERS, Wrapped, shaken
from wrapped_parity import address, leaves_by_name, same, tensors_by_name
from wrapped_torchvision_models import TORCHVISION

import fluxlike as fl
from fluxlike._private.compiler import build
from fluxlike.trees.paths import dotted


def made(table: str, name: str) -> tuple[Wrapped, nn.Module, Any]:
    """A row of the table, its module in test mode, and the module as a tree."""
    if table == "torchvision":
        torchvision()
    else:
        pytest.importorskip(table, reason=f"{table} is not installed")
    wrapped = {"transformers": TRANSFORMERS, "timm": TIMM, "torchvision": TORCHVISION}[table][name]
    torch.manual_seed(0)
    module = shaken(wrapped.build()).eval()
    return wrapped, module, fl.from_torch(module)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "name", "mode"),
    [
        ("transformers", "BERT", "test"),
        ("transformers", "GPT-2", "test"),
        ("transformers", "T5", "test"),
        ("torchvision", "resnet", "train"),
    ],
)
def test_a_compiled_step_is_the_eager_one(table, name, mode):
    assert_a_step_under_jit_is_the_eager_one(table, name, mode)


@pytest.mark.slow
def test_a_traced_step_of_shifted_windows_is_the_eager_one(monkeypatch):
    monkeypatch.setattr(build, "_can_compile", lambda: False)  # its kernels take two minutes to compile
    assert_a_step_under_jit_is_the_eager_one("torchvision", "swin_transformer", "test")


def assert_a_step_under_jit_is_the_eager_one(table, name, mode):
    wrapped, _, model = made(table, name)
    batch = wrapped.batch()

    def step(model, state, batch):
        loss, grads = fl.withgradient(lambda m, b: wrapped.loss(m, b)[0], model, batch)
        return loss, *fl.update(state, model, grads)

    compiled = fl.jit(step)
    both = []
    with fl.mode(mode):  # without draws, which differ from the eager ones
        for f in (step, compiled):
            m, state = model, fl.setup(fl.Adam(eps=1e-4), model)
            for _ in range(3):
                loss, m, state = f(m, state, batch)
            both.append((loss, leaves_by_name(m)))
    assert compiled.cache_info().traces <= 2  # Inductor gives the moments of convolutions strides of its own
    torch.testing.assert_close(both[1][0], both[0][0], rtol=1e-5, atol=1e-7)  # some losses are of float32
    for n, x in both[0][1].items():
        if isinstance(x, torch.Tensor):
            torch.testing.assert_close(both[1][1][n], x, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("table", "name"), [("transformers", "GPT-2"), ("torchvision", "googlenet")])
def test_one_vector_holds_all_parameters_in_the_order_of_torch(table, name):
    wrapped, module, model = made(table, name)
    batch = wrapped.batch()
    flat, rebuild = fl.destructure(model)
    assert torch.equal(flat, nn.utils.parameters_to_vector(module.parameters()).detach())
    same(wrapped.loss(rebuild(flat), batch)[0], wrapped.loss(model, batch)[0])
    with fl.mode("test"):
        gradient = fl.gradient(lambda v: wrapped.loss(rebuild(v), batch)[0], flat)
        tree = leaves_by_name(fl.gradient(lambda m: wrapped.loss(m, batch)[0], model))
    parts = [tree[dotted(p)] for p, _ in fl.trainables(model, paths=True)]
    sizes = [x.numel() for x in fl.trainables(model)]
    for part, expected in zip(gradient.split(sizes), parts, strict=True):
        expected = torch.zeros_like(part) if expected is None else expected.reshape(-1)
        torch.testing.assert_close(part, expected, rtol=1e-10, atol=1e-12)


def test_text_is_generated_as_by_the_module():
    _, module, model = made("transformers", "GPT-2")
    prompt = torch.tensor([[5, 6, 7]])
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 1}
    expected = module.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    assert torch.equal(model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings), expected)


def test_hooks_that_a_call_installs_are_gone_after_it():
    wrapped, _, model = made("transformers", "BERT, masked")
    counts = [len(wrapped.loss(model, wrapped.batch())[1].hidden_states) for _ in range(3)]
    assert counts == [3, 3, 3]


def test_what_a_call_appends_to_lists_of_the_module_is_gone_after_it():
    class Recording(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            self.seen, self.at = [], {"calls": 0}

        def forward(self, x):
            self.seen.append(x)
            self.at["calls"] += 1
            return super().forward(x) * len(self.seen) * self.at["calls"]

    module = Recording()
    model, x = fl.from_torch(module), torch.ones(1, 2)
    assert torch.equal(model(x), model(x))
    assert model.seen == [] == module.seen


def test_modules_of_one_class_keep_the_order_of_their_own_children():
    def chain(*names):
        return nn.Sequential(OrderedDict((name, nn.Linear(2, 2)) for name in names))

    fl.trainables(fl.from_torch(chain("one", "two")))
    module = chain("two", "one", "three")
    model = fl.from_torch(module)
    for tree in (model, fl.tree.clone(model), fl.update(fl.setup(fl.Descent(), model), model, model)[0]):
        assert [dotted(p) for p, _ in fl.trainables(tree, paths=True)] == list(tensors_by_name(module))
        assert tree[0] is tree.two
        assert tree[-1] is tree.three
    with pytest.raises(ValueError, match="at the root, the second tree of add lacks 'three'"):
        fl.tree.add(model, fl.from_torch(chain("two", "one")))


def test_the_members_of_a_list_of_modules_are_its_modules():
    linear = nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3))
    model = fl.from_torch(linear)
    assert len(model.parametrizations.weight) == 1
    assert model.parametrizations.weight[0] is next(iter(model.parametrizations.weight))
    assert model.parametrizations.weight[0]._u.shape == (3,)


def test_an_attribute_that_is_not_there_is_asked_for_without_a_call():
    model = fl.from_torch(nn.Linear(2, 2))
    with pytest.raises(AttributeError, match="Linear has no attribute 'units'"):
        _ = model.units
    assert not hasattr(model, "units")
    assert model.in_features == 2


def normed(*sizes):
    return nn.utils.parametrizations.weight_norm(nn.Linear(*sizes))


@pytest.mark.parametrize("make", [nn.Linear, nn.LSTM, normed], ids=["Linear", "LSTM", "weight_norm"])
def test_gradients_leave_the_memory_shared(make):
    module = make(3, 4)
    model = fl.from_torch(module)
    fl.gradient(lambda m: fl.fleaves(m(torch.ones(1, 3)))[0].sum(), model)
    theirs, ours = tensors_by_name(module), leaves_by_name(model)
    assert all(address(ours[n]) == address(theirs[n]) for n in theirs)
