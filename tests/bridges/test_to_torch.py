"""`to_torch`: a model as an nn.Module, trained by torch.optim, and back."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import inspect
import io
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.testing import assert_close
from torch.utils.data import TensorDataset

import fluxlike as fl
from fluxlike.bridges.torch_modules.tree_layout import RESERVED
from fluxlike.bridges.torch_modules.tree_module import TreeItems, TreeModule
from fluxlike.trees.structure import flatten, structure_of


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@fl.functor
class Holder:
    """Any tree as a model."""

    def __init__(self, tree: Any) -> None:
        self.held = tree

    def __call__(self, x: Any) -> Any:
        return self.held, x


@fl.functor(buffers=("seen", "scale"))
class Scaled:
    """Divides by a buffer, then moves it: autograd keeps what is written to."""

    def __init__(self) -> None:
        self.weight = torch.ones(3)
        self.seen = torch.tensor(0)
        self.scale = torch.full((3,), 2.0)

    def __call__(self, x: Tensor) -> Tensor:
        y = x * self.weight / fl.current(self.scale)
        fl.assign(self.seen, fl.current(self.seen) + 1)
        if fl.training(self):
            fl.assign(self.scale, fl.current(self.scale) * 2)
        return y


def cnn() -> Any:
    return fl.Chain(
        fl.Conv((3, 3), 1, 4, fl.relu, pad=1), fl.BatchNorm(4), fl.MeanPool((2, 2)), fl.flatten,
        fl.Dropout(0.3), fl.Dense(64, 3),
    )  # fmt: skip


def mlp() -> Any:
    return fl.Chain(fl.Dense(3, 5, fl.tanh), fl.Dense(5, 2))


@fl.functor
class Tied:
    def __init__(self) -> None:
        self.embedding = fl.Embedding(7, 4)
        self.body = fl.Dense(4, 4, fl.tanh)
        self.head = fl.Dense(4, 7)
        self.head.weight = self.embedding.weight

    def __call__(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embedding(x)))


@fl.functor
class Last:
    """An LSTM's last step, to a head."""

    def __init__(self) -> None:
        self.rnn, self.head = fl.LSTM(3, 4, num_layers=2), fl.Dense(4, 2)

    def __call__(self, x: Tensor) -> Tensor:
        out = self.rnn(x)
        return self.head((out[0] if isinstance(out, tuple) else out)[:, -1])


def transformer() -> Any:
    return fl.Chain(
        fl.Embedding(7, 8),
        fl.TransformerBlock(8, 2, dropout=0.2, causal=True),
        fl.LayerNorm(8),
        fl.Dense(8, 7),
    )


tokens = torch.arange(20).reshape(4, 5) % 7

MODELS: dict[str, tuple[Callable[[], Any], Callable[[], Tensor]]] = {
    "MLP": (mlp, lambda: torch.randn(6, 3)),
    "CNN with BatchNorm and Dropout": (cnn, lambda: torch.randn(6, 1, 8, 8)),
    "tied weights": (Tied, lambda: tokens),
    "LSTM": (Last, lambda: torch.randn(4, 6, 3)),
    "TransformerBlock with Dropout": (transformer, lambda: tokens),
    "SpectralNorm": (lambda: fl.SpectralNorm(fl.Dense(3, 4)), lambda: torch.randn(6, 3)),
    "WeightNorm": (lambda: fl.WeightNorm(fl.Dense(3, 4)), lambda: torch.randn(6, 3)),
    "BatchNorm of a mean": (lambda: fl.BatchNorm(3, momentum=None), lambda: torch.randn(6, 3)),
    "checkpoint": (lambda: fl.Chain(fl.checkpoint(mlp())), lambda: torch.randn(6, 3)),
    "checkpoint of SpectralNorm": (
        lambda: fl.checkpoint(fl.Chain(fl.SpectralNorm(fl.Dense(3, 4)), fl.BatchNorm(4))),
        lambda: torch.randn(6, 3),
    ),
    "a buffer that autograd keeps": (Scaled, lambda: torch.randn(6, 3)),
    "jit inside": (lambda: fl.Chain(fl.Dense(3, 4), fl.jit(fl.tanh)), lambda: torch.randn(6, 3)),
    "a torch module inside": (
        lambda: fl.Chain(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), fl.Dense(4, 2)),
        lambda: torch.randn(6, 3),
    ),
}  # fmt: skip


def values(tree: Any) -> dict[str, Any]:
    leaves, treedef = flatten(tree)
    return dict(zip(structure_of(treedef).paths, leaves, strict=True))


def assert_same(a: Any, b: Any, tolerance: float = 0.0) -> None:
    mine, theirs = values(a), values(b)
    assert mine.keys() == theirs.keys()
    for path, x in mine.items():
        if isinstance(x, Tensor):
            assert_close(x, theirs[path], rtol=tolerance, atol=tolerance, msg=lambda m, p=path: f"{p}: {m}")


# Training


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("uncompiled")
def test_five_steps_of_torchs_adam_are_those_of_update(name: str) -> None:
    make, batch = MODELS[name]
    model = fl.f64(make())
    x = batch()
    x = x.double() if x.is_floating_point() else x
    before = fl.tree.clone(model)
    module = fl.to_torch(model)
    optimiser = torch.optim.Adam(module.parameters(), 0.05, eps=1e-3)  # some gradients are 0 but for rounding
    state = fl.setup(fl.Adam(0.05, eps=1e-3), model)
    start = model
    for t in range(5):
        torch.manual_seed(t)
        loss, grads = fl.withgradient(lambda m: m(x).square().sum(), model)
        model, state = fl.update(state, model, grads)
        torch.manual_seed(t)
        optimiser.zero_grad()
        found = module(x).square().sum()
        found.backward()
        optimiser.step()
        assert_close(found, loss, rtol=1e-12, atol=1e-12)
    assert_same(module.tree(), model, 1e-12)
    assert_same(start, before)
    module.eval()
    assert_close(module(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_gradient_inside_the_forward_is_differentiated_by_backward() -> None:
    @fl.functor
    class Force:
        def __init__(self) -> None:
            self.energy = fl.Chain(fl.Dense(2, 4, fl.tanh), fl.Dense(4, 1))

        def __call__(self, x: Tensor) -> Tensor:
            return fl.gradient(lambda x: self.energy(x).sum(), x)

    model = fl.f64(Force())
    x = torch.randn(5, 2, dtype=torch.float64)
    expected = fl.gradient(lambda m: m(x).square().sum(), model)
    module = fl.to_torch(model)
    module(x).square().sum().backward()
    weight = module.energy.layers[0].weight
    assert_close(weight.grad, expected.energy.layers[0].weight)
    with torch.no_grad():
        assert_close(module(x), model(x))


def test_stack_and_vmap_inside_the_forward_carry_the_gradient() -> None:
    @fl.functor
    class Ensemble:
        def __init__(self) -> None:
            self.members = [fl.Dense(3, 2, fl.tanh) for _ in range(4)]

        def __call__(self, x: Tensor) -> Tensor:
            return fl.vmap(lambda m, x: m(x), (0, None))(fl.stack(self.members), x).mean(0)

    model, x = Ensemble(), torch.randn(5, 3)
    module = fl.to_torch(model)
    module(x).sum().backward()
    expected = fl.gradient(lambda m: m(x).sum(), model)
    assert_close(module.members[2].weight.grad, expected.members[2].weight)


def test_a_buffer_moves_as_torchs_batch_norm_moves_its_own() -> None:
    module, theirs = fl.to_torch(fl.BatchNorm(3)), nn.BatchNorm1d(3)
    running = module.running_mean
    for _ in range(3):
        x = torch.randn(8, 3)
        assert_close(module(x), theirs(x))
    assert module.running_mean is running
    assert_close(running, theirs.running_mean)
    assert_close(module.running_var, theirs.running_var)
    module.eval()
    module(x)
    assert_close(running, theirs.running_mean)


def test_buffers_move_without_gradients_too() -> None:
    module = fl.to_torch(fl.BatchNorm(3))
    with torch.no_grad():
        module(torch.randn(8, 3))
    moved = module.running_mean.clone()
    assert moved.any()
    with torch.inference_mode():
        module(torch.randn(8, 3))
    assert not torch.equal(moved, module.running_mean)


def test_several_calls_before_backward_keep_what_autograd_needs() -> None:
    module = fl.to_torch(Scaled())
    xs = [torch.randn(2, 3, requires_grad=True) for _ in range(3)]
    total = sum((module(x).sum() for x in xs), torch.zeros(()))
    total.backward()
    for k, x in enumerate(xs):
        assert_close(x.grad, torch.full((2, 3), 0.5 ** (k + 1)))
    assert module.seen == 3


def test_a_call_that_fails_writes_nothing() -> None:
    module = fl.to_torch(fl.Chain(fl.BatchNorm(3), fl.Dense(4, 2)))
    with pytest.raises(fl.LayerError, match=r"\.layers\[1\]"):
        module(torch.randn(5, 3))
    assert not module.layers[0].running_mean.any()
    assert not fl.training()


def test_a_parameter_cannot_be_assigned() -> None:
    @fl.functor
    class Wrong:
        def __init__(self) -> None:
            self.weight = torch.ones(2)

        def __call__(self, x: Tensor) -> Tensor:
            fl.assign(self.weight, x)
            return x

    with pytest.raises(ValueError, match=r"is a parameter"):
        fl.to_torch(Wrong())(torch.ones(2))


# The names, and what is behind them


def test_the_state_dict_has_the_models_paths() -> None:
    class Pair(NamedTuple):
        first: Tensor
        second: Tensor

    model = Holder(
        {"a": [torch.ones(1), None, (torch.zeros(2), "text")], "b": Pair(torch.ones(3), torch.ones(4))}
    )
    module = fl.to_torch(model)
    assert list(module.state_dict()) == ["held.a.0", "held.a.2.0", "held.b.first", "held.b.second"]
    assert module.get_parameter("held.b.second") is module.held["b"].second
    tree, x = module(3)
    assert x == 3
    assert tree["a"][2][1] == "text"
    assert tree["a"][1] is None
    assert type(tree["b"]).__name__ == "Pair"


def test_the_names_are_those_that_torch_optimisers_are_matched_by() -> None:
    model = cnn()
    module = fl.to_torch(model)
    state = fl.setup(fl.Adam(0.01), model)
    optimiser = fl.to_torch_optimiser(fl.Adam(0.01), state, module)
    module(torch.randn(3, 1, 8, 8)).sum().backward()
    optimiser.step()
    rule, state = fl.from_torch_optimiser(optimiser, module.tree(), module=module)
    assert rule == fl.Adam(0.01)


def test_buffers_are_buffers_and_constants_are_not_in_the_state() -> None:
    model = Holder((torch.tensor([1, 2]), torch.ones(2), 3.5, fl.relu, torch.ones(2, dtype=torch.complex64)))
    module = fl.to_torch(model)
    assert [n for n, _ in module.named_buffers()] == ["held.0"]
    assert [n for n, _ in module.named_parameters()] == ["held.1", "held.4"]
    assert module.held[2] == 3.5
    assert module.held[3] is fl.relu
    assert list(module.held)[3] is fl.relu
    assert len(module.held) == 5


def test_a_dict_of_layers_is_read_by_its_keys() -> None:
    module = fl.to_torch(Holder({"body": fl.Dense(2, 3), 7: fl.relu, "n": 1}))
    assert set(module.held) == {"body", 7, "n"}
    assert module.held["body"] is module.get_submodule("held.body")
    assert module.held["n"] == 1
    with pytest.raises(KeyError):
        module.held["tail"]


def test_slices_and_negative_indices_of_layers() -> None:
    module = fl.to_torch(cnn())
    assert module.layers[-1] is module.layers[5]
    assert module.layers[:2] == (module.layers[0], module.layers[1])
    with pytest.raises(IndexError):
        module.layers[6]


def test_a_name_that_every_module_has_gets_an_underscore() -> None:
    model = Holder(
        {"type": torch.ones(1), "forward": fl.Dense(1, 1), "tree": torch.ones(2), "training": torch.ones(3)}
    )
    module = fl.to_torch(model)
    assert set(module.state_dict()) == {
        "held.type_", "held.forward_.weight", "held.forward_.bias", "held.tree_", "held.training_"
    }  # fmt: skip
    assert_same(module.tree(), model)
    assert set(module(0)[0]) == {"type", "forward", "tree", "training"}


def test_every_name_of_the_classes_is_reserved() -> None:
    module = fl.to_torch(Holder([torch.ones(1)]))
    names = {n for n in (*dir(TreeItems), *dir(module), *module.__dict__) if not n.startswith("__")}
    assert names - RESERVED - {"smart_apply"} == {"held"}  # transformers puts that on every module


def test_a_key_with_a_dot_leads_through_modules() -> None:
    params = {
        name: p.detach() for name, p in nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).named_parameters()
    }
    module = fl.to_torch(Holder(params))
    assert set(module.state_dict()) == {f"held.{name}" for name in params}
    assert_same(module.tree().held, params)
    module.load_state_dict({k: v + 1 for k, v in module.state_dict().items()})
    assert_close(module(0)[0]["1.bias"], params["1.bias"] + 1)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["a.b", "a"], "rename one of the keys"),
        ([0, "0"], "rename one of the keys"),
        (["type", "type_"], "rename one of the keys"),
        ([""], "no name is empty"),
        (["a..b"], "no name is empty"),
        (["."], "no name is empty"),
    ],
)
def test_keys_of_one_name_and_of_none_are_refused(keys: list[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        fl.to_torch(Holder(collections.OrderedDict((k, torch.ones(1)) for k in keys)))
    assert ".held[" in str(error.value)


# Ties and purity


def test_tied_tensors_stay_one_parameter() -> None:
    module = fl.to_torch(Tied())
    assert module.head.weight is module.embedding.weight
    assert len(list(module.parameters())) == 4
    assert len(module.state_dict()) == 5
    tree = module.tree()
    assert tree.head.weight is tree.embedding.weight


def test_a_tensor_that_is_parameter_and_buffer_is_a_parameter_at_both_places() -> None:
    @fl.functor(buffers=("shadow",))
    class Shadowed:
        def __init__(self) -> None:
            self.shadow = torch.ones(2)
            self.weight = self.shadow

        def __call__(self, x: Tensor) -> Tensor:
            assert self.shadow is self.weight
            return x * self.shadow

    module = fl.to_torch(Shadowed())
    assert module.shadow is module.weight
    assert isinstance(module.shadow, nn.Parameter)
    module.double()
    assert module.shadow is module.weight
    module(torch.ones(2)).sum().backward()
    assert_close(module.weight.grad, torch.ones(2, dtype=torch.float64))


def test_tied_buffers_stay_one_through_casts() -> None:
    model = fl.Chain(fl.BatchNorm(2), fl.BatchNorm(2))
    model.layers[1].running_mean = model.layers[0].running_mean
    module = fl.to_torch(model).double()
    x = torch.randn(6, 2, dtype=torch.float64)
    module(x)
    _, updates = fl.withupdates(lambda m: m(x), fl.f64(model))
    expected = fl.apply_updates(fl.f64(model), updates)
    assert_same(module.tree(), expected, 1e-12)
    state = module.state_dict()
    assert_close(state["layers.0.running_mean"], state["layers.1.running_mean"])


@pytest.mark.parametrize("assign", [False, True])
def test_ties_survive_loading(assign: bool) -> None:
    module, other = fl.to_torch(Tied()), fl.to_torch(Tied())
    outer = nn.ModuleDict({"net": module})
    state = {k: v.clone() for k, v in nn.ModuleDict({"net": other}).state_dict().items()}
    outer.load_state_dict(state, assign=assign)
    assert module.head.weight is module.embedding.weight
    assert isinstance(module.head.weight, nn.Parameter)
    assert_close(module(tokens), other(tokens))


def test_the_model_shares_no_memory_with_the_module() -> None:
    model = cnn()
    before = fl.tree.clone(model)
    module = fl.to_torch(model)
    memory = {x.untyped_storage().data_ptr() for x in fl.fleaves(model)}
    assert memory.isdisjoint(x.untyped_storage().data_ptr() for x in module.state_dict().values())
    with torch.no_grad():
        for x in module.state_dict().values():
            x.fill_(7)
    tree = module.tree()
    with torch.no_grad():
        for x in module.state_dict().values():
            x.fill_(8)
    assert_same(model, before)
    assert all((x == 7).all() for x in fl.fleaves(tree))


def test_views_and_expanded_tensors_get_memory_of_their_own() -> None:
    base = torch.arange(6.0)
    module = fl.to_torch(Holder((base[:4], base[2:], torch.ones(1).expand(3))))
    with torch.no_grad():
        module.held[0].zero_()
        module.held[2][0] = 5
    assert_close(module.held[1], base[2:])
    assert_close(module.held[2], torch.tensor([5.0, 1, 1]))


def test_parameters_of_torch_and_computed_leaves_become_fresh_parameters() -> None:
    given = nn.Parameter(torch.ones(2), requires_grad=False)
    computed = nn.Parameter(torch.ones(2)) * 2
    module = fl.to_torch(Holder((given, computed)))
    assert all(p.is_leaf and p.requires_grad for p in module.parameters())
    assert module.held[0] is not given
    assert not any(x.requires_grad for x in fl.fleaves(module.tree()))


def test_it_works_under_inference_mode_and_trains_outside() -> None:
    with torch.inference_mode():
        module = fl.to_torch(mlp())
        snapshot = module.tree()
    module(torch.randn(2, 3)).sum().backward()
    assert not any(x.is_inference() for x in fl.fleaves(snapshot))


def test_the_global_state_stays() -> None:
    model = cnn()
    before = torch.random.get_rng_state()
    module = fl.to_torch(model)
    module.eval()(torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert not fl.training()


trees = st.recursive(
    st.integers(0, 5).map(lambda i: ("tensor", i)) | st.sampled_from([None, 1, "s", 2.5, fl.relu]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", "type", "x.y", "x.z", "model"]), inner, max_size=3)
        | inner.map(Holder)
    ),
    max_leaves=12,
)


def with_tensors(tree: Any, pool: list[Tensor]) -> Any:
    if isinstance(tree, tuple) and len(tree) == 2 and tree[0] == "tensor":
        return pool[tree[1]]
    if isinstance(tree, Holder):
        return Holder(with_tensors(tree.held, pool))
    if isinstance(tree, dict):
        return {k: with_tensors(v, pool) for k, v in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(with_tensors(v, pool) for v in tree)
    return tree


@settings(max_examples=60, deadline=None)
@given(trees)
def test_there_and_back_is_the_same_tree(tree: Any) -> None:
    pool = [
        torch.randn(2),
        torch.randn(()),
        torch.arange(3),
        torch.randn(0),
        torch.ones(2).bool(),
        torch.randn(1, 2),
    ]
    model = Holder(with_tensors(tree, pool))
    module = fl.to_torch(model)
    back = module.tree()
    called = module(0)[0]
    for found in (back, Holder(called)):
        leaves, treedef = flatten(found)
        mine, expected = flatten(model)
        assert treedef == expected
        for a, b in zip(leaves, mine, strict=True):
            assert torch.equal(a, b) if isinstance(b, Tensor) else a is b
        assert first_places(leaves) == first_places(mine)
    again = fl.to_torch(model)
    again.load_state_dict(module.state_dict())
    assert list(again.state_dict()) == list(module.state_dict())
    assert len(module.state_dict()) == sum(isinstance(x, Tensor) for x in flatten(model)[0])


def first_places(leaves: list[Any]) -> list[int]:
    seen: dict[int, int] = {}
    return [seen.setdefault(id(x), i) for i, x in enumerate(leaves) if isinstance(x, Tensor)]


# Modes


def modes(module: nn.Module) -> list[Any]:
    return module(0)


@fl.functor
class Asks:
    def __init__(self, inner: Any = None) -> None:
        self.inner = inner
        self.weight = torch.ones(1)

    def __call__(self, x: Any) -> list[bool]:
        return [fl.training(self), *(self.inner(x) if self.inner is not None else [])]


def test_the_mode_is_the_modules() -> None:
    module = fl.to_torch(Asks(Asks(Asks())))
    assert modules_train(module) == modes(module) == [True] * 3
    assert modes(module.eval()) == [False] * 3
    module.inner.train()
    assert modes(module) == [False, True, True]
    module.inner.inner.eval()
    assert modes(module) == [False, True, False]
    assert modes(module.inner) == [True, False]
    assert modes(module.train()) == [True] * 3
    with fl.mode("test"):
        assert modes(module) == [False] * 3


def modules_train(module: nn.Module) -> list[bool]:
    return [m.training for m in module.modules()]


def test_modes_pinned_in_the_model_stay() -> None:
    pinned = fl.testmode(Asks(Asks()))
    pinned.inner = fl.trainmode(pinned.inner)
    module = fl.to_torch(Asks(pinned))
    assert modes(module) == [True, False, True]
    assert modules_train(module) == [True, False, True]
    assert modes(module.eval()) == [False, False, True]
    assert modes(module.train()) == [True, False, True]
    tree = fl.automode(module.tree())
    assert fl.gradient(lambda m: m.weight.sum() + float(all(m(0))), tree).weight is not None


def test_the_mode_of_a_gradient_around_is_not_that_of_the_module() -> None:
    module = fl.to_torch(fl.Chain(fl.Dropout(0.5), fl.Scale(3))).eval()
    x = torch.ones(3)
    assert_close(fl.gradient(lambda x: module(x).sum(), x), torch.ones(3))


def test_a_part_in_another_mode_needs_room_for_it() -> None:
    @fl.functor
    class Slotted:
        __slots__ = ("weight",)

        def __init__(self) -> None:
            self.weight = torch.ones(1)

        def __call__(self, x: Tensor) -> Tensor:
            return x * self.weight

    module = fl.to_torch(fl.Chain(Slotted(), fl.Dense(1, 1)))
    assert module(torch.ones(1, 1)).shape == (1, 1)
    module.layers[0].eval()
    with pytest.raises(TypeError, match="_pinned_mode"):
        module(torch.ones(1, 1))


# What users of torch do with modules


def test_moves_and_casts() -> None:
    module = fl.to_torch(cnn()).eval()
    assert module.double()(torch.randn(2, 1, 8, 8).double()).dtype == torch.float64
    assert module.bfloat16()(torch.randn(2, 1, 8, 8).bfloat16()).dtype == torch.bfloat16
    assert module.half().tree().layers[0].weight.dtype == torch.float16
    module.float().to(memory_format=torch.channels_last)
    assert module.layers[0].weight.is_contiguous(memory_format=torch.channels_last)
    module.to("meta")
    assert module(torch.randn(2, 1, 8, 8, device="meta")).is_meta
    assert module.to_empty(device="cpu").tree().layers[0].weight.device.type == "cpu"


def test_autocast() -> None:
    module = fl.to_torch(mlp())
    x = torch.randn(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
    assert y.dtype == torch.bfloat16
    y.float().sum().backward()
    assert module.layers[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("duplicate", ["deepcopy", "pickle", "torch.save"])
def test_copies_are_apart(duplicate: str) -> None:
    module = fl.to_torch(fl.Chain(Tied(), fl.BatchNorm(7)))
    module(tokens.reshape(-1))
    module.layers[1].eval()
    other = duplicated(module, duplicate)
    assert type(other) is type(module)
    assert other.layers[0].head.weight is other.layers[0].embedding.weight
    x = tokens.reshape(-1)
    assert_close(other(x), module(x), rtol=0, atol=0)
    assert modules_train(other) == modules_train(module)
    with torch.no_grad():
        other.layers[0].head.weight.zero_()
    assert module.layers[0].head.weight.any()
    assert not other.tree().layers[0].embedding.weight.any()
    other.load_state_dict(module.state_dict())
    assert_close(other(x), module(x), rtol=0, atol=0)


def duplicated(module: Any, how: str) -> Any:
    if how == "deepcopy":
        return copy.deepcopy(module)
    if how == "pickle":
        return pickle.loads(pickle.dumps(module))
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_the_state_is_loaded_with_torchs_checks() -> None:
    module = fl.to_torch(mlp())
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.1\.bias"):
        module.load_state_dict({k: v for k, v in module.state_dict().items() if k != "layers.1.bias"})
    with pytest.raises(RuntimeError, match="size mismatch"):
        module.load_state_dict({**module.state_dict(), "layers.1.bias": torch.ones(3)})
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    assert len(module.load_state_dict(torch.load(file)).missing_keys) == 0


def test_initialising_clipping_and_freezing() -> None:
    module = fl.to_torch(mlp())
    module.apply(lambda m: nn.init.ones_(m.weight) if hasattr(m, "weight") else None)
    assert (module.layers[0].weight == 1).all()
    module.layers[0].requires_grad_(False)
    module(torch.randn(4, 3)).sum().backward()
    assert module.layers[0].weight.grad is None
    nn.utils.clip_grad_norm_(module.parameters(), 0.1)
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert_close(torch.stack([g.norm() for g in grads]).norm(), torch.tensor(0.1))
    module.zero_grad()
    flat = nn.utils.parameters_to_vector(module.parameters())
    nn.utils.vector_to_parameters(flat * 2, module.parameters())
    assert (module.layers[0].weight == 2).all()


def test_a_parameter_that_is_put_in_anew_is_used() -> None:
    module = fl.to_torch(fl.Dense(3, 2))
    module.weight = nn.Parameter(torch.zeros(2, 3))
    assert not module(torch.ones(1, 3)).any()


def test_hooks_run_around_the_whole_and_around_parts() -> None:
    module = fl.to_torch(mlp())
    seen: list[Any] = []
    handles = [
        module.register_forward_hook(lambda m, args, out: seen.append(("whole", out.shape))),
        module.layers[0].register_forward_hook(lambda m, args, out: out * 0),
        module.layers[1].register_forward_pre_hook(lambda m, args: seen.append(("in", bool(args[0].any())))),
        module.layers[1].register_full_backward_hook(lambda m, gi, go: seen.append("back")),
    ]
    x = torch.randn(4, 3)
    module(x).sum().backward()
    assert seen == [("in", False), ("whole", (4, 2)), "back"]
    assert "(layers)" in repr(module)
    for handle in handles:
        handle.remove()
    assert_close(module.eval()(x), module.tree()(x))


def test_a_part_can_be_replaced_by_a_module() -> None:
    module = fl.to_torch(fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4), fl.Dense(4, 2)))
    module.layers.add_module("0", nn.Linear(3, 4))
    module(torch.randn(5, 3)).sum().backward()
    assert module.layers[0].weight.grad is not None
    assert module.layers[1].running_mean.any()
    assert_close(module.tree().layers[0].weight, module.layers[0].weight)
    module.layers.add_module("0", nn.Identity())
    assert module(torch.randn(5, 4)).shape == (5, 2)
    with pytest.raises(AttributeError, match="weight"):
        module.tree()


def test_parametrisations_and_pruning_of_torch() -> None:
    module = fl.to_torch(mlp())
    x = torch.randn(4, 3)

    class Zero(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * 0

    nn.utils.parametrize.register_parametrization(module.layers[1], "weight", Zero())
    assert_close(module(x), module.layers[1].bias.expand(4, 2))
    assert not module.tree().layers[1].weight.any()
    other = fl.to_torch(mlp())
    prune.l1_unstructured(other.layers[0], "weight", 0.5)
    other(x).sum().backward()
    assert (other.layers[0].weight_orig.grad == 0).any()


def test_functional_call_and_torch_func() -> None:
    module = fl.to_torch(cnn()).eval()
    x = torch.randn(4, 1, 8, 8)
    params = {k: v.detach() for k, v in module.named_parameters()}
    buffers = dict(module.named_buffers())

    def loss(params: Any, x: Tensor) -> Tensor:
        return torch.func.functional_call(module, (params, buffers), (x,)).square().sum()

    grads = torch.func.grad(loss)(params, x)
    module(x).square().sum().backward()
    for name, p in module.named_parameters():
        assert_close(grads[name], p.grad)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(params, x[:, None])
    assert_close(each["layers.0.weight"].sum(0), grads["layers.0.weight"], rtol=1e-4, atol=1e-5)


def test_functional_call_moves_the_buffers_that_were_given() -> None:
    module = fl.to_torch(fl.BatchNorm(2))
    given_buffers = {k: v.clone() for k, v in module.named_buffers()}
    torch.func.functional_call(module, given_buffers, torch.randn(5, 2))
    assert given_buffers["running_mean"].any()
    assert not module.running_mean.any()


def test_replicas_of_data_parallel() -> None:
    module = fl.to_torch(fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2)))
    replicas = {m: m._replicate_for_data_parallel() for m in module.modules()}
    for m, replica in replicas.items():
        for name, child in m.named_children():
            setattr(replica, name, replicas[child])
        for name, p in m.named_parameters(recurse=False):
            setattr(replica, name, p.view_as(p))
    x = torch.randn(5, 2)
    out = replicas[module](x)
    out.square().sum().backward()
    assert module.layers[0].weight.grad is not None
    assert module.layers[1].running_mean.any()


def test_averaged_models_of_torch() -> None:
    module = fl.to_torch(cnn())
    average = torch.optim.swa_utils.AveragedModel(module, use_buffers=True)
    module(torch.randn(4, 1, 8, 8))
    average.update_parameters(module)
    assert_close(average.module.layers[1].running_mean, module.layers[1].running_mean)
    loader = torch.utils.data.DataLoader(TensorDataset(torch.randn(8, 1, 8, 8)), 4)
    torch.optim.swa_utils.update_bn((x for (x,) in loader), average)


def test_a_module_inside_modules_of_torch() -> None:
    net = nn.Sequential(nn.Linear(3, 3), fl.to_torch(mlp()), fl.to_torch(fl.MeanPool((2,))))
    assert "1.layers.0.weight" in net.state_dict()
    net(torch.randn(4, 3)[None]).sum().backward()
    assert "to_torch(Chain(" in repr(net)


def test_threads_may_call_at_once() -> None:
    model = cnn()
    module = fl.to_torch(model).eval()
    xs = [torch.randn(2, 1, 8, 8) for _ in range(8)]
    found: dict[int, Tensor] = {}

    def run(i: int) -> None:
        for _ in range(10):
            with torch.no_grad():
                found[i] = module(xs[i])

    threads = [threading.Thread(target=run, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[i], model(xs[i])) for i in range(8))


def test_modules_go_when_nothing_holds_them() -> None:
    module = fl.to_torch(cnn())
    module(torch.randn(2, 1, 8, 8)).sum().backward()
    gone = weakref.ref(module.layers[0].weight)
    gc.collect()
    gc.disable()
    try:
        del module
        assert gone() is None
    finally:
        gc.enable()


def test_the_signature_is_that_of_the_call() -> None:
    assert list(inspect.signature(fl.to_torch(mlp()).forward).parameters) == ["x"]
    assert "query" in inspect.signature(fl.to_torch(fl.MultiHeadAttention(4, 2)).forward).parameters
    assert fl.to_torch(fl.MultiHeadAttention(4, 2))(torch.randn(2, 3, 4), causal=True).shape == (2, 3, 4)


def test_outputs_are_as_the_model_gives_them() -> None:
    @dataclasses.dataclass
    class Out:
        y: Tensor
        rest: dict[str, Any]

    @fl.functor
    class Gives:
        def __init__(self) -> None:
            self.w = torch.tensor(2.0)

        def __call__(self, a: Tensor, *, b: float) -> Out:
            return Out(a * self.w, {"b": b})

    module = fl.to_torch(Gives())
    assert module.w.shape == ()
    out = module(torch.ones(2), b=3.0)
    assert out.rest == {"b": 3.0}
    out.y.sum().backward()
    assert module.w.grad == 2


def test_the_repr_is_the_models() -> None:
    module = fl.to_torch(cnn())
    assert repr(module).startswith("to_torch(Chain(\n  Conv((3, 3), 1, 4, relu, pad=1),")
    assert repr(module.layers[5]) == "to_torch(Dense(64, 3))  # 195 parameters"
    module.layers[1].eval()
    assert "8 non-trainable, test mode" in repr(module)
    assert repr(fl.to_torch(fl.Dropout(0.5))) == "to_torch(Dropout(0.5))"


# Nodes that stand for torch modules


def test_a_wrapped_module_inside_a_model_becomes_its_own_class_with_its_ties() -> None:
    norm = nn.LayerNorm(3)
    tied = fl.Scale(3)
    wrapped = fl.from_torch(norm)
    tied.weight = wrapped.weight
    module = fl.to_torch(fl.Chain(fl.Dense(2, 3), wrapped, tied))
    assert type(module.layers[1]) is nn.LayerNorm
    assert module.layers[1].weight is module.layers[2].weight
    module(torch.randn(4, 2)).sum().backward()
    assert module.layers[1].weight.grad is not None
    tree = module.tree()
    assert tree.layers[1].torch_class is nn.LayerNorm
    assert tree.layers[1].weight is tree.layers[2].weight


def test_an_unpickled_wrapped_module_becomes_its_own_class_before_from_torch_was_imported(
    tmp_path: Path,
) -> None:
    (tmp_path / "model").write_bytes(pickle.dumps(fl.from_torch(nn.Sequential(nn.Linear(2, 1)))))
    code = (
        "import pickle, sys, fluxlike as fl\n"
        "module = fl.to_torch(pickle.load(open(sys.argv[1], 'rb')))\n"
        "assert 'fluxlike.bridges.torch_modules.from_torch' not in sys.modules\n"
        "print(type(module).__name__, *module.state_dict())"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, check=True
    )
    assert told.stdout.split() == ["Sequential", "0.weight", "0.bias"]


# Errors that teach


def gradients() -> Any:
    return fl.gradient(lambda m: m(torch.ones(3, 2)).sum(), fl.BatchNorm(2))


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (nn.Linear(2, 1), TypeError, "got a Linear, which is a torch.nn.Module already"),
        (fl.Dense, TypeError, r"the class Dense: write to_torch\(Dense"),
        ((fl.Dense(2, 1),), TypeError, r"found a tuple; write to_torch\(Chain\(\*layers\)\)"),
        ({"w": torch.ones(1)}, TypeError, "found a dict; make a class with a __call__"),
        (torch.tensor(1.0), TypeError, "found a Tensor"),
        (3, TypeError, "found a int"),
        (None, TypeError, "found a NoneType"),
        (fl.relu, TypeError, "found the function relu; a module would not have the tensors"),
        (lambda x: x, TypeError, "found the function <lambda>"),
        (fl.jit(fl.Dense(2, 1)), TypeError, "a compiled function; give the model itself"),
        (fl.Dense(2, 1).__call__, TypeError, "not registered"),
        (fl.setup(fl.Adam(), fl.Dense(2, 1)), TypeError, "the state of an optimiser"),
        (fl.to_torch(fl.Dense(2, 1)), TypeError, "a torch.nn.Module already"),
        (gradients(), ValueError, "Assigned: this is a tree of gradients"),
    ],
    ids=[
        "module", "class", "tuple", "dict", "tensor", "number", "None", "function", "lambda", "jit", "method",
        "state", "twice", "gradients",
    ],
)  # fmt: skip
def test_what_is_no_model(model: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fl.to_torch(model)


def test_a_model_without_values() -> None:
    with torch.device("meta"):
        model = mlp()
    with pytest.raises(ValueError, match=r"\.layers\[0\]\.weight is on the meta device"):
        fl.to_torch(model)


def test_a_container_inside_is_no_model() -> None:
    module = fl.to_torch(mlp())
    assert isinstance(module.layers, TreeModule)
    with pytest.raises(NotImplementedError):
        module.layers(torch.ones(1))
