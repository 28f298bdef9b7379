"""`update(..., donate=True)`: the same numbers in the same memory, and no old tensor that can lie."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl

KERNELS = {
    "Descent": fl.Descent(0.1),
    "Momentum": fl.Momentum(0.1),
    "Nesterov": fl.Nesterov(0.1),
    "Adam": fl.Adam(0.1),
    "Adam, weight_decay": fl.Adam(0.1, weight_decay=0.1),
    "AdamW": fl.AdamW(0.1),
    "AMSGrad": fl.AMSGrad(0.1),
    "AdaGrad": fl.AdaGrad(0.1, lr_decay=0.1),
}
FORMULAS = {
    "AdamW, uncoupled": fl.AdamW(0.1, couple=False),
    "RMSProp": fl.RMSProp(0.1, momentum=0.9, centered=True),
    "Rprop": fl.Rprop(0.1),
    "AdaDelta": fl.AdaDelta(0.1),
    "AdaMax": fl.AdaMax(0.1),
    "OAdam": fl.OAdam(0.1),
    "NAdam": fl.NAdam(0.1),
    "RAdam": fl.RAdam(0.1),
    "AdaBelief": fl.AdaBelief(0.1),
    "Lion": fl.Lion(0.1),
    "Lamb": fl.Lamb(0.1),
    "ScheduleFree": fl.ScheduleFree(0.1),
    "Adafactor": fl.Adafactor(0.1),
    "Muon": fl.Muon(0.1),
    "a rate in a tensor": fl.Adam(torch.tensor(0.1)),
}
WRAPPERS = {
    "a chain": fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.WeightDecay(0.1), fl.Adam(0.1)),
    "a chain that ends with a link": fl.OptimiserChain(fl.Momentum(0.1), fl.ClipNorm(1.0)),
    "an empty chain": fl.OptimiserChain(),
    "AccumGrad": fl.OptimiserChain(fl.AccumGrad(3), fl.Adam(0.1)),
    "MixedPrecision": fl.MixedPrecision(torch.float64, fl.Adam(0.1)),
    "MixedPrecision of the same dtype": fl.MixedPrecision(torch.float32, fl.AdamW(0.1)),
    "EMA": fl.EMA(fl.Adam(0.1), decay=0.7),
    "EMA of a formula": fl.EMA(fl.Lion(0.1), decay=0.7),
    "Lookahead": fl.Lookahead(fl.Adam(0.1), k=3),
    "Lookahead of a formula": fl.Lookahead(fl.RMSProp(0.1), k=3),
    "EMA, Lookahead, MixedPrecision": fl.EMA(
        fl.Lookahead(fl.MixedPrecision(torch.float64, fl.Adam(0.1)), k=2), decay=0.5
    ),
    "MixedPrecision, EMA": fl.MixedPrecision(torch.float64, fl.EMA(fl.Momentum(0.1), decay=0.5)),
    "ApplyIfFinite": fl.ApplyIfFinite(fl.Adam(0.1)),
    "Scheduled": fl.Scheduled(fl.Adam(), lr=fl.schedules.Cosine(0.1, 0.0, 8)),
    "Lookahead over AccumGrad": fl.Lookahead(fl.OptimiserChain(fl.AccumGrad(2), fl.Adam(0.1)), k=2),
}
ALL = {**KERNELS, **FORMULAS, **WRAPPERS}
each_rule = pytest.mark.parametrize("name", ALL)

MESSAGE = r"this tensor was donated .*fluxlike\.tree\.clone"


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)


def mixed_model() -> dict[str, Any]:
    """Parameters of many kinds, with a tie, a buffer and a constant."""
    w = randn(4, 3)
    return {
        "w": w, "b": randn(4, seed=1), "s": randn(seed=2), "tied": w, "empty": torch.zeros(0),
        "conv": randn(2, 3, 2, 2, seed=3).to(memory_format=torch.channels_last),
        "t": randn(5, 2, seed=4).T, "n": torch.tensor(3), "name": "text",
    }  # fmt: skip


def gradients(model: Any, t: int) -> Any:
    """Gradients by step and by where the parameters are; None at the second place of a tie."""
    grads: dict[str, Any] = dict.fromkeys(model)
    for i, k in enumerate(("w", "b", "s", "empty", "conv", "t")):
        if k in model:
            grads[k] = 0.3 * model[k] + randn(*model[k].shape, seed=100 * t + i, dtype=model[k].dtype)
    return grads


def run(rule: Any, model: Any, donate: bool, steps: int = 12) -> tuple[Any, Any]:
    model = fl.tree.clone(model)
    state = fl.setup(rule, model)
    for t in range(steps):
        model, state = fl.update(state, model, gradients(model, t), donate=donate)
    return model, state


def usable(x: Tensor) -> bool:
    try:
        x.sum()
    except RuntimeError:
        return False
    return True


def addresses(x: Tensor) -> set[int]:
    """Where each number of a tensor begins."""
    if not x.numel():
        return set()
    size = x.untyped_storage().nbytes() // x.element_size()
    offsets = torch.arange(size).as_strided(x.shape, x.stride(), x.storage_offset())
    return {x.untyped_storage().data_ptr() + i * x.element_size() for i in offsets.flatten().tolist()}


def assert_disjoint(*trees: Any) -> None:
    """No two tensors of the trees share memory, unless they are the same object."""
    seen: set[int] = set()
    for x in {id(x): x for tree in trees for x in fl.fleaves(tree)}.values():
        own = addresses(x)
        assert len(own) == x.numel()
        assert not own & seen
        seen |= own


# The same numbers


@each_rule
def test_a_donated_run_has_the_numbers_of_a_pure_one(name: str) -> None:
    pure, donated = run(ALL[name], mixed_model(), False), run(ALL[name], mixed_model(), True)
    tolerance = {"rtol": 0, "atol": 0} if name in KERNELS else {"rtol": 1e-6, "atol": 1e-6}
    assert fl.tree.allclose(pure, donated, **tolerance)


@each_rule
def test_nothing_that_a_donated_update_returns_shares_memory(name: str) -> None:
    model = mixed_model()
    state = fl.setup(ALL[name], model)
    for t in range(4):
        grads = gradients(model, t)
        model, state = fl.update(state, model, grads, donate=True)
        assert_disjoint(model, state)
        assert_disjoint(model, grads)


@each_rule
def test_nothing_that_a_pure_update_returns_shares_memory(name: str) -> None:
    model = mixed_model()
    state = fl.setup(ALL[name], model)
    for t in range(3):
        old = (model, state)
        model, state = fl.update(state, model, gradients(model, t))
        assert_disjoint(model, state)
        moved = [x for x in fl.fleaves((model, state)) if x.ndim and not any(x is y for y in fl.fleaves(old))]
        assert_disjoint(old, moved)


@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion", "EMA", "MixedPrecision"])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128]
)
def test_every_dtype_moves_as_in_a_pure_run(name: str, dtype: torch.dtype) -> None:
    model = {k: randn(*s, seed=i, dtype=dtype) for i, (k, s) in enumerate({"w": (4, 3), "s": ()}.items())}
    pure, donated = run(ALL[name], model, False), run(ALL[name], model, True)
    assert fl.tree.allclose(pure, donated, rtol=0, atol=0)
    assert {x.dtype for x in fl.fleaves(donated[0])} == {dtype}
    assert_disjoint(*donated)


@pytest.mark.parametrize("name", ["Adam", "Lion", "EMA"])
def test_large_parameters_that_are_moved_in_pieces_equal_those_of_a_pure_run(name: str) -> None:
    model = {"w": randn(900, 700), "b": randn(7, seed=1)}
    pure, donated = run(ALL[name], model, False, 2), run(ALL[name], model, True, 2)
    assert fl.tree.allclose(pure, donated, rtol=1e-6, atol=1e-6)


@each_rule
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_matrix_moves_beside_others(name: str, shape: tuple[int, int]) -> None:
    model = {"w": torch.zeros(shape), "b": randn(3)}
    pure, donated = run(ALL[name], model, False, 2), run(ALL[name], model, True, 2)
    assert donated[0]["w"].shape == shape
    assert fl.tree.allclose(pure, donated, rtol=1e-6, atol=1e-6)


def test_a_donated_parameter_keeps_its_memory_and_layout() -> None:
    model = mixed_model()
    before = {k: (x.data_ptr(), x.stride()) for k, x in model.items() if isinstance(x, Tensor)}
    moved, _ = fl.update(fl.setup(fl.Adam(), model), model, gradients(model, 0), donate=True)
    assert {k: (x.data_ptr(), x.stride()) for k, x in moved.items() if isinstance(x, Tensor)} == before


@pytest.mark.parametrize(
    "view", [lambda x: x[::2], lambda x: x[:, :2], lambda x: x[:, 1::2], lambda x: x.T[1:]], ids=range(4)
)
def test_a_view_with_gaps_can_be_donated(view: Callable[[Tensor], Tensor]) -> None:
    model = {"w": view(randn(6, 4))}
    pure = fl.update(fl.setup(fl.Adam(0.1), model), model, {"w": torch.ones_like(model["w"])})
    donated = fl.update(fl.setup(fl.Adam(0.1), model), model, {"w": torch.ones_like(model["w"])}, donate=True)
    assert fl.tree.allclose(pure, donated)


@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion", "EMA", "a chain"])
def test_disjoint_views_of_one_storage_can_be_donated(name: str) -> None:
    whole = randn(10)
    kept = whole[7:]
    model = {"b": whole[:3], "w": whole[3:7]}
    del whole  # which would change unseen
    pure = run(ALL[name], model, False, 3)
    state = fl.setup(ALL[name], model)
    for t in range(3):
        model, state = fl.update(state, model, gradients(model, t), donate=True)
    assert fl.tree.allclose(pure[0], model, rtol=1e-6, atol=1e-6)
    assert torch.equal(kept, randn(10)[7:])


@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion", "EMA", "MixedPrecision"])
def test_parameters_of_a_module_move_as_in_a_pure_run(name: str) -> None:
    module = torch.nn.Linear(3, 2)
    model = dict(module.named_parameters())
    plain = {k: x.detach().clone() for k, x in model.items()}
    grads = {k: torch.ones_like(x) for k, x in plain.items()}
    pure = fl.update(fl.setup(ALL[name], plain), plain, grads)
    moved, state = fl.update(fl.setup(ALL[name], model), model, grads, donate=True)
    assert fl.tree.allclose(pure, (moved, state), rtol=1e-6, atol=1e-6)
    assert {type(x) for x in moved.values()} == {Tensor}
    assert {k: x.tolist() for k, x in module.named_parameters()} == {k: x.tolist() for k, x in plain.items()}
    moved, state = fl.update(state, moved, grads, donate=True)
    assert torch.equal(module.weight, plain["weight"])


def test_a_model_trains_by_donated_updates() -> None:
    def loss(m: Any, x: Tensor) -> Tensor:
        return (m(x) ** 2).mean()

    first = fl.Chain(fl.Dense(3, 4, fl.tanh), fl.BatchNorm(4), fl.Dense(4, 1))
    results = []
    for donate in (False, True):
        model = fl.tree.clone(first)
        state = fl.setup(fl.Adam(0.1), model)
        for t in range(6):
            grads = fl.gradient(loss, model, randn(5, 3, seed=t))
            model, state = fl.update(state, model, grads, donate=donate)
        results.append((model, state))
    assert fl.tree.allclose(*results, rtol=0, atol=0)


def test_ties_stay_ties_and_their_partial_gradients_add_up() -> None:
    w = randn(3)
    model = {"w": w, "tied": w}
    state = fl.setup(fl.Momentum(0.1), model)
    grads = {"w": torch.ones(3), "tied": torch.ones(3)}
    moved, after = fl.update(state, model, grads, donate=True)
    assert moved["w"] is moved["tied"]
    assert after["w"].state is after["tied"].state
    assert_close(moved["w"], randn(3) - 0.2)
    moved, after = fl.update(after, moved, {"w": torch.ones(3), "tied": None}, donate=True)
    assert moved["w"] is moved["tied"]


# No old tensor can be used


def consumed() -> Tensor:
    x = randn(3)
    fl.update(fl.setup(fl.Adam(), {"w": x}), {"w": x}, {"w": torch.ones(3)}, donate=True)
    return x


def in_place(x: Tensor) -> None:
    x += 1


LATER: dict[str, Callable[[Tensor], Any]] = {
    "arithmetic": lambda x: x + 1,
    "arithmetic from the right": lambda x: torch.ones(3) * x,
    "comparison": lambda x: x == x,
    "shape": lambda x: x.shape,
    "dtype": lambda x: x.dtype,
    "len": len,
    "repr": repr,
    "format": lambda x: f"{x}",
    "bool": bool,
    "iteration": list,
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": pickle.dumps,
    "torch.save": lambda x: torch.save({"w": x}, io.BytesIO()),
    "numpy": lambda x: x.numpy(),
    "np.asarray": np.asarray,
    "tolist": lambda x: x.tolist(),
    "indexing": lambda x: x[0],
    "setting": lambda x: x.__setitem__(0, 1.0),
    "in place": in_place,
    "in place by a method": lambda x: x.zero_(),
    "in place by out=": lambda x: torch.add(torch.ones(3), 1, out=x),
    "detach": lambda x: x.detach(),
    "data": lambda x: x.data,
    "setting data": lambda x: setattr(x, "data", torch.ones(3)),
    "requires_grad_": lambda x: x.requires_grad_(),
    "data_ptr": lambda x: x.data_ptr(),
    "untyped_storage": lambda x: x.untyped_storage(),
    "dlpack": torch.from_dlpack,
    "dlpack, the old way": torch.utils.dlpack.to_dlpack,
    "torch.as_tensor": lambda x: torch.as_tensor(x) + 1,
    "torch.tensor": torch.tensor,
    "torch.Tensor": torch.Tensor,
    "nn.Parameter": torch.nn.Parameter,
    "torch.cat": lambda x: torch.cat([torch.ones(3), x]),
    "foreach": lambda x: torch._foreach_add([x, torch.ones(3)], 1.0),
    "einsum": lambda x: torch.einsum("i,i->", x, x),
    "linear": lambda x: torch.nn.functional.linear(torch.ones(1, 3), x),
    "functional_call": lambda x: torch.func.functional_call(
        torch.nn.Linear(3, 1, bias=False), {"weight": x}, torch.ones(3)
    ),
    "torch.func.grad": lambda x: torch.func.grad(lambda w: (w**2).sum())(x),
    "torch.func.grad, in a tree": lambda x: torch.func.grad(lambda m: (m["w"] ** 2).sum())({"w": x}),
    "torch.func.vjp": lambda x: torch.func.vjp(lambda w: w * 2, x),
    "torch.func.jvp": lambda x: torch.func.jvp(lambda w: w * 2, (x,), (torch.ones(3),)),
    "torch.vmap": lambda x: torch.vmap(lambda w: w * 2)(x),
    "closed over in torch.func.grad": lambda x: torch.func.grad(lambda w: (w * x).sum())(torch.ones(3)),
    "closed over in torch.vmap": lambda x: torch.vmap(lambda w: w * x)(torch.ones(2, 3)),
    "fl.gradient": lambda x: fl.gradient(lambda m: (m["w"] ** 2).sum(), {"w": x}),
    "closed over in fl.gradient": lambda x: fl.gradient(lambda w: (w * x).sum(), torch.ones(3)),
    "fl.update, the model": lambda x: fl.update(
        fl.setup(fl.Adam(), {"w": torch.ones(3)}), {"w": x}, {"w": torch.ones(3)}
    ),
    "fl.update, the gradients": lambda x: fl.update(
        fl.setup(fl.Adam(), {"w": torch.ones(3)}), {"w": torch.ones(3)}, {"w": x}
    ),
    "fl.update, the state": lambda x: fl.update(
        {"w": fl.ParamState(fl.Momentum(), x)}, {"w": torch.ones(3)}, {"w": torch.ones(3)}
    ),
    "fl.update, donated": lambda x: fl.update(
        fl.setup(fl.Adam(), {"w": torch.ones(3)}), {"w": x}, {"w": torch.ones(3)}, donate=True
    ),
    "fl.steps": lambda x: fl.steps(
        fl.setup(fl.Adam(), {"w": torch.ones(3)}), {"w": x}, {"w": torch.ones(3)}
    ),
    "fl.setup": lambda x: fl.setup(fl.Adam(), {"w": x}),
    "fl.averaged": lambda x: fl.averaged(fl.setup(fl.EMA(fl.Adam()), {"w": torch.ones(3)}), {"w": x}),
    "fl.to_device": lambda x: fl.to_device({"w": x}, "cpu"),
    "fl.f64": lambda x: fl.f64({"w": x}),
    "fl.fmap": lambda x: fl.fmap(torch.zeros_like, {"w": x}),
    "fl.tree.clone": lambda x: fl.tree.clone({"w": x}),
    "fl.tree.norm": lambda x: fl.tree.norm({"w": x}),
    "fl.tree.lerp": lambda x: fl.tree.lerp({"w": torch.ones(3)}, {"w": x}, 0.5),
    "fl.summary": lambda x: fl.summary({"w": x}),
    "fl.trainables": lambda x: fl.trainables({"w": x}),
    "fl.state_dict": lambda x: fl.load_state_dict({"w": torch.ones(3)}, fl.state_dict({"w": x})),
    "fl.find_nonfinite": lambda x: fl.find_nonfinite({"w": x}),
}  # fmt: skip


#: Functions that read a tensor past ``__torch_function__``, so that it can't say what is wrong.
UNASKED = {
    "dlpack, the old way", "torch.tensor", "torch.Tensor", "torch.func.grad", "torch.func.grad, in a tree",
    "torch.func.vjp",
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor", "ignore:`torch.jit.script")
@pytest.mark.parametrize("use", sorted(LATER.keys() - UNASKED))
def test_any_use_of_a_consumed_tensor_names_clone(use: str) -> None:
    x = consumed()
    with pytest.raises(RuntimeError, match=MESSAGE):
        LATER[use](x)


@pytest.mark.filterwarnings("ignore:To copy construct from a tensor", "ignore:`torch.jit.script")
@pytest.mark.parametrize("use", sorted(UNASKED))
def test_what_does_not_ask_a_consumed_tensor_finds_nothing_in_it(use: str) -> None:
    try:
        found = LATER[use](consumed())
    except RuntimeError:
        return
    assert not isinstance(found, Tensor) or found.numel() == 0


def test_a_view_of_a_tensor_that_is_held_is_refused() -> None:
    base = torch.ones(4, 3)
    model = {"w": base[:3]}
    with pytest.raises(ValueError, match=r"\['w'\] of the model is a view of a tensor that is still held"):
        fl.update(fl.setup(fl.Adam(), model), model, {"w": torch.ones(3, 3)}, donate=True)
    assert torch.equal(base, torch.ones(4, 3))


def test_saving_a_consumed_tensor_is_an_error_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=MESSAGE):
        fl.save(tmp_path / "run.safetensors", {"w": consumed()})
    assert not list(tmp_path.iterdir())


def test_a_model_kept_under_another_name_can_not_be_used() -> None:
    model = fl.Chain(fl.Dense(2, 2, fl.relu), fl.Dense(2, 1))
    best, state = model, fl.setup(fl.Adam(), model)
    model, state = fl.update(
        state, model, fl.gradient(lambda m: m(torch.ones(1, 2)).sum(), model), donate=True
    )
    model(torch.ones(1, 2))
    for use in (lambda: best(torch.ones(1, 2)), lambda: repr(best), lambda: best.layers[1](torch.ones(1, 2))):
        with pytest.raises((RuntimeError, fl.LayerError), match="donated"):
            use()


@pytest.mark.parametrize("name", ["Momentum", "Adam", "AMSGrad", "AdaGrad", "Lion", "RMSProp"])
def test_an_old_state_can_not_be_used(name: str) -> None:
    model = {"w": randn(3)}
    old = fl.setup(ALL[name], model)
    model, _ = fl.update(old, model, {"w": torch.ones(3)}, donate=True)
    for donate in (False, True):
        with pytest.raises(RuntimeError, match=MESSAGE):
            fl.update(old, model, {"w": torch.ones(3)}, donate=donate)


def test_a_copy_made_before_has_the_old_numbers_and_its_ties() -> None:
    model = mixed_model()
    state = fl.setup(fl.Adam(0.1), model)
    best, best_state = fl.tree.clone(model), fl.tree.clone(state)
    fl.update(state, model, gradients(model, 0), donate=True)
    assert fl.tree.allclose(best, mixed_model(), rtol=0, atol=0)
    assert best["w"] is best["tied"]
    fl.update(best_state, best, gradients(best, 0), donate=True)


def test_averages_taken_before_do_not_change_unseen() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.complex64):
        for rule in (fl.EMA(fl.Descent(0.5), decay=0.5), fl.Lookahead(fl.Descent(0.5), k=1)):
            model = {"w": randn(3, dtype=dtype)}
            state = fl.setup(rule, model)
            average = fl.averaged(state, model)
            before = average["w"].clone()
            fl.update(state, model, {"w": torch.ones(3, dtype=dtype)}, donate=True)
            assert not usable(average["w"]) or torch.equal(average["w"], before), (dtype, rule)


def test_a_module_whose_parameter_stayed_in_one_step_does_not_change_unseen_in_the_next() -> None:
    module = torch.nn.Linear(2, 1)
    before = module.weight.detach().clone()
    model = dict(module.named_parameters())
    state = fl.setup(fl.Descent(1.0), model)
    model, state = fl.update(state, model, {"weight": None, "bias": torch.ones(1)})
    fl.update(state, model, {"weight": torch.ones(1, 2), "bias": None}, donate=True)
    assert not usable(module.weight) or torch.equal(module.weight, before)


@dataclass(frozen=True)
class Towards:
    """A user's rule that keeps the parameter that it saw last."""

    def init(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param)

    def apply(self, state: Tensor, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return param, 0.1 * grad + 0.5 * (param - state)


def test_a_rule_may_keep_the_parameter_itself_in_its_state() -> None:
    results = []
    for donate in (False, True):
        model = {"w": randn(3)}
        state = fl.setup(Towards(), model)
        for _ in range(4):
            model, state = fl.update(state, model, {"w": torch.ones(3)}, donate=donate)
        results.append((model, state))
    assert fl.tree.allclose(*results)


# Consumption is exact


@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion", "EMA", "Lookahead", "MixedPrecision", "a chain"])
def test_only_what_was_written_over_is_consumed(name: str) -> None:
    model = {**mixed_model(), "frozen": randn(3, seed=7), "none": randn(3, seed=8)}
    state = fl.freeze(fl.setup(ALL[name], model), "['frozen']")
    grads = {**gradients(model, 0), "frozen": torch.ones(3)}
    moments = {k: [x for x in fl.fleaves(state[k]) if x.ndim] for k in ("b", "frozen", "none")}
    counters = [x for x in fl.fleaves(state) if x.ndim == 0]
    values = [x.clone() for x in counters]
    moved, after = fl.update(state, model, grads, donate=True)
    for k in ("w", "b", "tied", "conv", "t"):
        assert not usable(model[k])
    for x in moments["b"]:  # between its meetings, Lookahead keeps the slow weights as they are
        assert not usable(x) or any(x is y for y in fl.fleaves(after["b"]))
    for k in ("frozen", "none"):
        assert moved[k] is model[k]
        assert after[k] is state[k]
        assert usable(model[k])
        assert all(map(usable, moments[k]))
    assert torch.equal(model["n"], torch.tensor(3))
    assert moved["n"] is model["n"]
    assert moved["name"] is model["name"]
    assert all(usable(g) for g in grads.values() if g is not None)
    integers = [(x, v) for x, v in zip(counters, values, strict=True) if x.dtype == torch.int64]
    assert all(torch.equal(x, v) for x, v in integers)


@pytest.mark.parametrize("name", ["Adam", "Lion"])
def test_gradients_keep_their_numbers(name: str) -> None:
    model = mixed_model()
    state, grads = fl.setup(ALL[name], model), gradients(model, 0)
    kept = fl.tree.clone(grads)
    fl.update(state, model, grads, donate=True)
    assert fl.tree.allclose(grads, kept, rtol=0, atol=0)


def test_a_buffer_that_moves_is_not_consumed() -> None:
    model = fl.Chain(fl.Dense(2, 2), fl.BatchNorm(2))
    state = fl.setup(fl.Adam(), model)
    old = model.layers[1].running_mean
    grads = fl.gradient(lambda m: m(randn(4, 2)).square().sum(), model)
    moved, _ = fl.update(state, model, grads, donate=True)
    assert torch.equal(old, torch.zeros(2))
    assert torch.equal(moved.layers[1].running_mean, grads.layers[1].running_mean.value)


def test_a_step_that_is_held_back_leaves_everything_usable_or_consumed_but_right() -> None:
    rule = fl.ApplyIfFinite(fl.EMA(fl.Adam(0.1)))
    model = {"w": randn(3), "h": randn(3, dtype=torch.bfloat16)}
    state = fl.setup(rule, model)
    grads = {"w": torch.full((3,), float("nan")), "h": torch.ones(3, dtype=torch.bfloat16)}
    moved, after = fl.update(state, model, grads, donate=True)
    assert torch.equal(moved["w"], randn(3))
    assert torch.equal(moved["h"], randn(3, dtype=torch.bfloat16))
    assert_disjoint(moved, after)
    fl.update(after, moved, fl.tree.zeros_like(moved), donate=True)


# What is refused


def mapped(tmp_path: Path) -> Tensor:
    (tmp_path / "raw").write_bytes(bytes(12))
    return torch.from_file(str(tmp_path / "raw"), shared=False, size=3, dtype=torch.float32)


def mapped_by_safetensors(tmp_path: Path) -> Tensor:
    from safetensors.torch import load_file, save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "x.safetensors")
    return load_file(tmp_path / "x.safetensors")["w"]


def mapped_by_torch(tmp_path: Path) -> Tensor:
    torch.save(torch.zeros(3), tmp_path / "x.pt")
    return torch.load(tmp_path / "x.pt", mmap=True)


def read_only(tmp_path: Path) -> Tensor:
    array = np.zeros(3, np.float32)
    array.flags.writeable = False
    return torch.from_numpy(array)


def inference(tmp_path: Path) -> Tensor:
    with torch.inference_mode():
        return torch.zeros(3)


READ_ONLY = {
    "expanded": (lambda _: torch.zeros(1).expand(3), "is expanded or overlaps itself"),
    "as_strided": (lambda _: torch.zeros(4).as_strided((3, 2), (1, 1)), "is expanded or overlaps itself"),
    "numpy": (lambda _: torch.from_numpy(np.zeros(3, np.float32)), "memory that torch does not own"),
    "numpy, read-only": (read_only, "memory that torch does not own"),
    "frombuffer": (
        lambda _: torch.frombuffer(bytearray(12), dtype=torch.float32), "memory that torch does not own",
    ),
    "from_file": (mapped, "memory that torch does not own"),
    "safetensors": (mapped_by_safetensors, "memory that torch does not own"),
    "torch.load with mmap": (mapped_by_torch, "memory that torch does not own"),
    "inference": (inference, "made under torch.inference_mode"),
}  # fmt: skip


def assert_refused(model: Any, state: Any, grads: Any, message: str) -> None:
    """The update is refused, nothing has changed, and it works as the message says."""
    tensors = [x for x in fl.fleaves((model, state, grads)) if not x.is_inference()]
    before = [(x.detach().clone(), x._version) for x in tensors]
    with pytest.raises(ValueError, match=message):
        fl.update(state, model, grads, donate=True)
    assert all(torch.equal(x, v) and x._version == n for x, (v, n) in zip(tensors, before, strict=True))
    pure = fl.update(state, model, grads)
    copies = fl.tree.clone(model)
    donated = fl.update(fl.tree.clone(state), copies, fl.tree.clone(grads), donate=True)
    assert fl.tree.allclose(pure, donated)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
@pytest.mark.parametrize("case", READ_ONLY)
@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion"])
def test_memory_that_can_not_be_written_over_is_refused(name: str, case: str, tmp_path: Path) -> None:
    make, message = READ_ONLY[case]
    x = make(tmp_path)
    model = {"fine": torch.ones(2), "bad": [x]}
    grads = {"fine": torch.ones(2), "bad": [torch.ones(x.shape)]}
    hint = r"pass fluxlike\.tree\.clone\(model\) once before the first update"
    hint = rf"{hint}, or leave donate=True out"
    assert_refused(
        model, fl.setup(ALL[name], model), grads, rf"^\['bad'\]\[0\] of the model .*{message}.*{hint}"
    )


def test_a_parameter_with_a_graph_is_refused() -> None:
    model = {"w": torch.zeros(3, requires_grad=True) * 2}
    state = fl.setup(fl.Adam(), {"w": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"\['w'\] of the model was computed with a graph.*detach it first"):
        fl.update(state, model, {"w": torch.ones(3)}, donate=True)


def test_a_frozen_parameter_may_lie_anywhere() -> None:
    model = {"w": torch.ones(3), "bad": torch.from_numpy(np.zeros(3, np.float32))}
    state = fl.freeze(fl.setup(fl.Adam(), model), "['bad']")
    moved, _ = fl.update(state, model, {"w": torch.ones(3), "bad": torch.ones(3)}, donate=True)
    assert moved["bad"] is model["bad"]


def shared_with_a_buffer() -> tuple[Any, Any, Any]:
    whole = torch.zeros(4)

    @fl.functor(buffers=("old",))
    class Layer:
        def __init__(self) -> None:
            self.w, self.old = whole[:3], whole[2:]

    model = Layer()
    grads = fl.gradient(lambda m: m.w.sum(), model)
    return model, fl.setup(fl.Momentum(), model), grads


def shared_with_another() -> tuple[Any, Any, Any]:
    whole = torch.zeros(4)
    model = {"w": whole[:3], "v": whole[1:]}
    return model, fl.setup(fl.Momentum(), model), {"w": torch.ones(3), "v": torch.ones(3)}


def shared_with_a_frozen_one() -> tuple[Any, Any, Any]:
    model, state, grads = shared_with_another()
    return model, fl.freeze(state, "['v']"), grads


def shared_with_one_without_a_gradient() -> tuple[Any, Any, Any]:
    model, state, grads = shared_with_another()
    return model, state, {**grads, "v": None}


def shared_with_its_gradient() -> tuple[Any, Any, Any]:
    model = {"w": torch.ones(3)}
    return model, fl.setup(fl.Momentum(), model), model


def shared_with_the_gradient_of_another() -> tuple[Any, Any, Any]:
    model = {"w": torch.ones(3), "v": torch.ones(2)}
    return model, fl.setup(fl.Momentum(), model), {"w": torch.ones(3), "v": model["w"][1:]}


def shared_with_its_moment() -> tuple[Any, Any, Any]:
    model = {"w": torch.ones(3)}
    return model, {"w": fl.ParamState(fl.Momentum(), model["w"][:])}, {"w": torch.ones(3)}


def shared_with_a_moment_at_rest() -> tuple[Any, Any, Any]:
    model = {"w": torch.ones(3), "v": torch.ones(3)}
    state = fl.setup(fl.Momentum(), model)
    state["v"] = fl.ParamState(fl.Momentum(), model["w"][:], True)
    return model, state, {"w": torch.ones(3), "v": torch.ones(3)}


def moment_shared_with_a_gradient() -> tuple[Any, Any, Any]:
    model, moment = {"w": torch.ones(3)}, torch.zeros(3)
    return model, {"w": fl.ParamState(fl.Momentum(), moment)}, {"w": moment[:]}


def moment_from_numpy() -> tuple[Any, Any, Any]:
    model, moment = {"w": torch.ones(3)}, torch.from_numpy(np.zeros(3, np.float32))
    return model, {"w": fl.ParamState(fl.Momentum(), moment)}, {"w": torch.ones(3)}


def complex_parts() -> tuple[Any, Any, Any]:
    z = torch.zeros(3, dtype=torch.complex64)
    model = {"w": z, "v": z.real}
    return model, fl.setup(fl.Momentum(), model), {"w": torch.ones_like(z), "v": torch.ones(3)}


SHARED = {
    "a buffer": (shared_with_a_buffer, r"\.old of the model shares memory|\.w of the model shares memory"),
    "another parameter": (
        shared_with_another,
        r"\['v'\] of the model shares memory with \['w'\] of the model",
    ),
    "a frozen parameter": (
        shared_with_a_frozen_one,
        r"\['[wv]'\] of the model shares memory with \['[wv]'\]",
    ),
    "a parameter without a gradient": (shared_with_one_without_a_gradient, r"\['[wv]'\].* shares memory"),
    "its gradient": (
        shared_with_its_gradient,
        r"\['w'\] of the (model|gradients) shares memory with \['w'\] of",
    ),
    "the gradient of another": (
        shared_with_the_gradient_of_another,
        r"\['[wv]'\] of the .* shares memory with",
    ),
    "its moment": (shared_with_its_moment, r"the state of \['w'\]"),
    "a moment at rest": (shared_with_a_moment_at_rest, r"the state of \['v'\]"),
    "a moment and a gradient": (moment_shared_with_a_gradient, r"the state of \['w'\]"),
    "a moment from numpy": (
        moment_from_numpy,
        r"the state of \['w'\] lies in memory that torch does not own",
    ),
    "the real part of another": (complex_parts, r"shares memory with"),
}


@pytest.mark.parametrize("case", SHARED)
def test_memory_that_is_needed_elsewhere_is_refused(case: str) -> None:
    make, message = SHARED[case]
    assert_refused(*make(), message)


def test_a_state_that_two_parameters_share_is_refused_with_what_helps() -> None:
    w = torch.ones(2)
    model = {"a": w, "b": w}
    state = fl.setup(fl.Momentum(), model)
    apart = fl.at(model, "['b']").set(torch.zeros(2))
    grads = {"a": torch.ones(2), "b": torch.ones(2)}
    with pytest.raises(
        ValueError, match=r"the state of \['b'\] shares memory with the state of \['a'\]"
    ) as e:
        fl.update(state, apart, grads, donate=True)
    assert "tree.clone(model)" not in str(e.value)  # which does not help: the state is what is shared
    apart, state = fl.update(state, apart, grads)
    fl.update(state, apart, grads, donate=True)


def test_a_model_on_the_meta_device_moves_donated_as_pure() -> None:
    model = fl.to_device({"w": torch.ones(2), "b": torch.ones(3)}, "meta")
    moved, _ = fl.update(fl.setup(fl.Adam(), model), model, fl.tree.clone(model), donate=True)
    assert {x.device.type for x in moved.values()} == {"meta"}


def test_a_shape_error_in_a_donated_update_changes_nothing() -> None:
    model = {"a": torch.ones(2), "b": torch.ones(2)}
    state = fl.setup(fl.Adam(0.1), model)
    with pytest.raises(ValueError, match=r"at \['b'\], the gradient has the shape"):
        fl.update(state, model, {"a": torch.ones(2), "b": torch.ones(3)}, donate=True)
    assert torch.equal(model["a"], torch.ones(2))
    assert torch.equal(state["a"].state.exp_avg, torch.zeros(2))


def failing_clip() -> tuple[Any, Any, Any]:
    model = {"a": torch.ones(2), "b": torch.ones(2)}
    state = fl.setup(fl.OptimiserChain(fl.Momentum(1.0), fl.ClipNorm(1.0)), model)
    return model, state, {"a": torch.tensor([1.0, float("nan")]), "b": torch.ones(2)}


def failing_dtype() -> tuple[Any, Any, Any]:
    model = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)}
    state = {**fl.setup(fl.Adam(), model), "b": fl.setup(fl.Adam(), torch.ones(2))}
    return model, state, fl.tree.clone(model)


@dataclass(frozen=True)
class Fails:
    def init(self, param: Tensor) -> None:
        return None

    def apply(self, state: None, param: Tensor, grad: Tensor) -> Any:
        raise ValueError("no")


def failing_rule() -> tuple[Any, Any, Any]:
    model = {"a": torch.ones(2), "b": torch.ones(2)}
    state = fl.setup(lambda path: fl.Adam() if "a" in path else Fails(), model)
    return model, state, fl.tree.clone(model)


@pytest.mark.parametrize("make", [failing_clip, failing_dtype, failing_rule])
def test_an_error_in_the_middle_of_a_donated_update_leaves_no_tensor_changed_unseen(make: Any) -> None:
    model, state, grads = make()
    tensors = fl.fleaves((model, state))
    before = [x.clone() for x in tensors]
    with pytest.raises(ValueError):
        fl.update(state, model, grads, donate=True)
    assert all(not usable(x) or torch.equal(x, v) for x, v in zip(tensors, before, strict=True))


# Inside a transform


@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion", "EMA"])
def test_inside_a_gradient_nothing_is_consumed(name: str) -> None:
    model, grads = {"w": randn(3)}, {"w": randn(3, seed=1)}
    state = fl.setup(ALL[name], model)

    def after(m: Any, donate: bool) -> Tensor:
        return (fl.update(state, m, grads, donate=donate)[0]["w"] ** 2).sum()

    pure, donated = (fl.gradient(after, model, donate) for donate in (False, True))
    assert torch.equal(pure["w"], donated["w"])
    assert all(map(usable, fl.fleaves((model, state, grads))))
    assert torch.equal(model["w"], randn(3))


@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion", "EMA"])
def test_a_model_that_is_closed_over_in_a_gradient_is_not_consumed(name: str) -> None:
    model, grads = {"w": randn(3)}, {"w": randn(3, seed=1)}
    state = fl.setup(ALL[name], model)
    for transform in (fl.gradient, lambda f, x: torch.func.grad(f)(x)):
        transform(lambda x: (x * fl.update(state, model, grads, donate=True)[0]["w"]).sum(), torch.ones(3))
        assert torch.equal(model["w"], randn(3))
        assert all(map(usable, fl.fleaves(state)))


@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion", "EMA"])
def test_under_torch_func_nothing_is_consumed(name: str) -> None:
    model, grads = randn(2, 3), randn(2, 3, seed=1)

    def after(w: Tensor, g: Tensor, donate: bool) -> Tensor:
        return fl.update(fl.setup(ALL[name], w), w, g, donate=donate)[0].square().sum()

    for transform in (lambda d: torch.vmap(lambda w, g: after(w, g, d)),
                      lambda d: torch.func.grad(lambda w, g: after(w, g, d))):  # fmt: skip
        pure, donated = (transform(d)(model, grads) for d in (False, True))
        assert_close(pure, donated, rtol=0, atol=0)
    assert torch.equal(model, randn(2, 3))


# Graphs that saved an old parameter


@pytest.mark.parametrize("name", ["Descent", "Momentum", "Adam", "AdaGrad", "Lion", "EMA", "MixedPrecision"])
@pytest.mark.parametrize("steps", [0, 1])
@pytest.mark.parametrize(
    "use",
    [
        lambda q, w: (q * w).sum(),
        lambda q, w: (q @ w.T).sum(),
        lambda q, w: torch.nn.functional.linear(q, w).square().sum(),
        lambda q, w: (q * w.detach()).sum(),
    ],
    ids=["the parameter", "a view of it", "linear", "an alias of it"],
)
def test_a_graph_that_saved_an_old_parameter_raises(name: str, steps: int, use: Any) -> None:
    model = {"w": randn(3, 3)}
    state = fl.setup(ALL[name], model)
    for _ in range(steps):
        model, state = fl.update(state, model, {"w": torch.ones(3, 3)})
    q = torch.ones(3, 3, requires_grad=True)
    loss = use(q, model["w"])
    fl.update(state, model, {"w": torch.ones(3, 3)}, donate=True)
    with pytest.raises(RuntimeError):
        loss.backward()


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
@pytest.mark.parametrize("name", ["Descent", "Adam", "Lion"])
def test_a_graph_of_a_module_parameter_is_left_alone(name: str, shape: tuple[int, ...]) -> None:
    model = {"w": torch.nn.Parameter(torch.ones(shape))}
    loss = (model["w"] ** 2).sum()
    fl.update(fl.setup(ALL[name], model), model, {"w": torch.ones(shape)}, donate=True)
    loss.backward()
    assert torch.equal(model["w"].grad, torch.full(shape, 2.0))


# Memory

SCRIPT = """
import resource, torch
import fluxlike as fl

torch.set_num_threads(1)
MB = 1024  # ru_maxrss is in KiB
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MB
rule = {rule}
small = [torch.ones(2), torch.ones(2)]
fl.update(fl.setup(rule, small), small, fl.tree.clone(small), donate=True)
model = [torch.ones(1 << 20) for _ in range(10)]
grads = [torch.ones(1 << 20) for _ in range(10)]
state = fl.setup(rule, model)
model, state = fl.update(state, model, grads, donate=True)
start = peak()
model, state = fl.update(state, model, grads, donate=True)
donated = peak() - start
start = peak()
model, state = fl.update(state, model, grads)
print(donated, peak() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss has other units elsewhere")
@pytest.mark.parametrize(("rule", "moments"), [("fl.Adam()", 2), ("fl.Lion()", 1)])
def test_a_donated_update_needs_no_memory_and_a_pure_one_a_copy(rule: str, moments: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(rule=rule)], capture_output=True, text=True, check=True
    )
    donated, pure = map(float, done.stdout.split())
    assert donated < 15
    assert pure < 40 * (1 + moments) + 25


@dataclass(frozen=True)
class Keep:
    """A user's link that keeps the parameter that it saw last."""

    def init(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param)

    def apply(self, state: Tensor, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return param, grad


def test_a_link_may_keep_the_parameter_itself_in_its_state() -> None:
    results = []
    for donate in (False, True):
        model = {"w": randn(3)}
        state = fl.setup(fl.OptimiserChain(Keep(), fl.Descent(0.1)), model)
        for _ in range(3):
            model, state = fl.update(state, model, {"w": torch.ones(3)}, donate=donate)
        results.append((model, state))
    assert fl.tree.allclose(*results)


@fl.functor
@dataclass(frozen=True)
class Stale(fl.Momentum):
    """A formula whose new state is the parameter, and whose step is made of the old state."""

    def formula(self, v: Any, x: Any, g: Any, /) -> Any:
        return x, v * self.lr + g * self.lr


def test_a_formula_reads_everything_before_anything_is_written_over() -> None:
    results = []
    for donate in (False, True):
        model = {"w": randn(3), "m": randn(400, 400)}
        state = fl.setup(Stale(0.1), model)
        for _ in range(3):
            model, state = fl.update(state, model, fl.fmap(torch.ones_like, model), donate=donate)
        results.append((model, state))
    assert fl.tree.allclose(*results)


def test_a_gradient_that_autograd_records_is_differentiated_through_a_donated_update() -> None:
    model = {"w": torch.ones(3)}
    state = fl.setup(fl.Momentum(0.5), model)
    scale = torch.tensor(2.0, requires_grad=True)
    after, _ = fl.update(state, model, {"w": scale * torch.arange(3.0)}, donate=True)
    after["w"].sum().backward()
    assert_close(scale.grad, torch.tensor(-1.5))  # of 1 - 0.5 scale (0 + 1 + 2)
