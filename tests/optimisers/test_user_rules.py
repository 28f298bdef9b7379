"""A rule of one's own: a frozen dataclass with `init` and `apply`, and whatever else it likes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxlike as fl


@dataclass(frozen=True)
class SignDescent:
    """Nothing but the two methods."""

    lr: float = 0.1

    def init(self, param: Tensor) -> None:
        return None

    def apply(self, state: None, param: Tensor, grad: Tensor) -> tuple[None, Tensor]:
        return state, self.lr * grad.sign()


@dataclass(frozen=True)
class Averaging:
    """A state that is a dict with a counter."""

    lr: float = 0.1

    def init(self, param: Tensor) -> dict[str, Any]:
        return {"sum": torch.zeros_like(param), "seen": [torch.zeros((), dtype=torch.int64)]}

    def apply(self, state: dict[str, Any], param: Tensor, grad: Tensor) -> tuple[dict[str, Any], Tensor]:
        total, seen = state["sum"] + grad, state["seen"][0] + 1
        return {"sum": total, "seen": [seen]}, self.lr * total / seen


@dataclass(frozen=True)
class LargestAlone:
    """Looks at all leaves at once: moves the one with the largest gradient."""

    lr: float = 1.0

    def init(self, param: Tensor) -> None:
        return None

    def apply(self, state: None, param: Tensor, grad: Tensor) -> tuple[None, Tensor]:
        return state, self.lr * grad

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor]
    ) -> tuple[Sequence[None], list[Tensor]]:
        sizes = [float(g.abs().max()) for g in grads]
        return states, [self.lr * g * (s == max(sizes)) for g, s in zip(grads, sizes, strict=True)]


@dataclass(frozen=True)
class Halved:
    """A wrapper around another rule."""

    rule: Any

    def init(self, param: Tensor) -> Any:
        return self.rule.init(param)

    def apply(self, state: Any, param: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
        state, step = self.rule.apply(state, param, grad)
        return state, step / 2


class Plain:
    """No dataclass at all."""

    def init(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param)

    def apply(self, state: Tensor, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return state + grad, grad


def model() -> dict[str, Tensor]:
    return {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}


def grads() -> dict[str, Tensor]:
    return {"a": torch.tensor([-0.5, 0.25]), "b": torch.tensor([2.0])}


def test_init_and_apply_are_all_that_a_rule_needs() -> None:
    moved, state = fl.update(fl.setup(SignDescent(0.5), model()), model(), grads())
    assert torch.equal(moved["a"], torch.tensor([1.5, 1.5]))
    assert torch.equal(moved["b"], torch.tensor([2.5]))
    assert state["a"].state is None


def test_a_rule_is_recognised_by_its_methods() -> None:
    assert isinstance(SignDescent(), fl.Rule)
    assert isinstance(fl.Adam(), fl.Rule)
    assert not isinstance(0.1, fl.Rule)


def test_a_state_may_be_any_tree() -> None:
    m = model()
    state = fl.setup(Averaging(1.0), m)
    m, state = fl.update(state, m, grads())
    m, state = fl.update(state, m, fl.tree.scale(grads(), 3.0))
    assert torch.equal(state["b"].state["sum"], torch.tensor([8.0]))
    assert state["b"].state["seen"][0] == 2
    assert torch.equal(m["b"], torch.tensor([3.0 - 2.0 - 4.0]))


def test_apply_all_sees_all_leaves_that_share_the_rule() -> None:
    moved, _ = fl.update(fl.setup(LargestAlone(), model()), model(), grads())
    assert torch.equal(moved["a"], model()["a"])
    assert torch.equal(moved["b"], torch.tensor([1.0]))


def test_apply_all_sees_leaves_in_the_order_of_the_tree_where_rules_are_equal() -> None:
    seen: list[list[float]] = []

    @dataclass(frozen=True)
    class Noting(LargestAlone):
        def apply_all(self, states: Any, params: Any, grads: Any) -> Any:
            seen.append([float(x) for x in params])
            return super().apply_all(states, params, grads)

    params = {name: torch.tensor(x) for name, x in (("a", 1.0), ("b", 2.0), ("c", 3.0))}
    state = {**fl.setup(Noting(), params), "b": fl.setup(Noting(), params)["b"]}
    fl.update(state, params, params)
    assert seen == [[1.0, 2.0, 3.0]]


def test_apply_all_sees_neither_frozen_leaves_nor_those_without_a_gradient() -> None:
    state = fl.setup(LargestAlone(), model())
    for s, g in ((fl.freeze(state, "['b']"), grads()), (state, {**grads(), "b": None})):
        moved, _ = fl.update(s, model(), g)
        assert torch.equal(moved["a"], model()["a"] - grads()["a"])


def test_a_plain_class_can_be_a_rule() -> None:
    moved, state = fl.update(fl.setup(Plain(), model()), model(), grads())
    assert torch.equal(moved["b"], torch.tensor([1.0]))
    assert torch.equal(state["b"].state, torch.tensor([2.0]))


def test_a_rule_of_ones_own_stands_in_a_chain() -> None:
    rule = fl.OptimiserChain(fl.ClipGrad(1.0), Averaging(1.0))
    moved, state = fl.update(fl.setup(rule, model()), model(), grads())
    assert torch.equal(moved["b"], torch.tensor([2.0]))
    assert torch.equal(state["b"].state[1]["sum"], torch.tensor([1.0]))


def test_a_rule_may_hold_another() -> None:
    state = fl.setup(Halved(fl.Momentum(1.0)), model())
    moved, state = fl.update(state, model(), grads())
    assert torch.equal(moved["b"], torch.tensor([2.0]))
    assert torch.equal(state["b"].state, torch.tensor([2.0]))
    assert fl.adjust(state, 0.5)["b"].rule == Halved(fl.Momentum(0.5))


@pytest.mark.parametrize("rule", [SignDescent(), Averaging(), LargestAlone(), Halved(fl.Adam())], ids=repr)
def test_its_hyperparameters_can_be_adjusted(rule: Any) -> None:
    state = fl.adjust(fl.setup(rule, model()), 0.75)
    inner = getattr(state["a"].rule, "rule", state["a"].rule)
    assert inner.lr == 0.75
    with pytest.raises(ValueError, match="no rule there has a hyperparameter 'momentum'"):
        fl.adjust(state, momentum=0.5)


@pytest.mark.parametrize("rule", [SignDescent(), Averaging(), Halved(fl.Adam())], ids=repr)
def test_its_state_can_be_saved_and_moved(rule: Any, tmp_path: Path) -> None:
    m, state = fl.update(fl.setup(rule, model()), model(), grads())
    fl.save(tmp_path / "state.safetensors", state)
    loaded = fl.load(tmp_path / "state.safetensors", like=fl.setup(rule, model()))
    straight, _ = fl.update(state, m, grads())
    resumed, _ = fl.update(fl.to_device(loaded, "cpu"), m, grads())
    assert fl.tree.allclose(resumed, straight, rtol=0, atol=0)


def test_it_gets_16_bit_parameters_as_float32() -> None:
    seen = []

    @dataclass(frozen=True)
    class Looking:
        def init(self, param: Tensor) -> Tensor:
            seen.append(param.dtype)
            return torch.zeros_like(param)

        def apply(self, state: Tensor, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
            seen.extend([param.dtype, grad.dtype])
            return state, grad

    x = torch.ones(2, dtype=torch.bfloat16)
    moved, _ = fl.update(fl.setup(Looking(), x), x, x)
    assert seen == [torch.float32] * 3
    assert moved.dtype == torch.bfloat16


def test_it_is_differentiable() -> None:
    slope = fl.gradient(
        lambda lr: fl.update(fl.setup(SignDescent(lr), model()), model(), grads())[0]["b"].sum(),
        torch.tensor(0.1),
    )
    assert torch.equal(slope, torch.tensor(-1.0))


@dataclass(frozen=True)
class WrongShape:
    def init(self, param: Tensor) -> None:
        return None

    def apply(self, state: None, param: Tensor, grad: Tensor) -> tuple[None, Any]:
        return state, grad.sum()


@dataclass(frozen=True)
class NoStep(WrongShape):
    def apply(self, state: None, param: Tensor, grad: Tensor) -> tuple[None, Any]:
        return state, None


@dataclass(frozen=True)
class TooFew(WrongShape):
    def apply_all(self, states: Any, params: Any, grads: Any) -> tuple[Any, Any]:
        return states[:1], grads[:1]


def test_a_step_of_another_shape_is_named_with_its_path() -> None:
    with pytest.raises(ValueError, match=r"WrongShape at \['a'\]: a step of \(\); .* the shape \(2,\)"):
        fl.update(fl.setup(WrongShape(), model()), model(), grads())


def test_a_step_that_is_no_tensor_is_named_with_its_path() -> None:
    with pytest.raises(ValueError, match=r"NoStep at \['a'\]: a step of None"):
        fl.update(fl.setup(NoStep(), model()), model(), grads())


def test_apply_all_that_loses_leaves_says_how_many() -> None:
    with pytest.raises(ValueError, match=r"TooFew\.apply_all returned 1 states and 1 steps for 2 leaves"):
        fl.update(fl.setup(TooFew(), model()), model(), grads())


@dataclass(frozen=True)
class Namesakes:
    """Fields and methods that happen to have names that rules of fluxlike use."""

    lr: float = 0.1
    average: bool = True
    parts: int = 3
    last_alone: bool = True

    def init(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param)

    def formula(self) -> str:
        return "x - lr·g"

    def adjusted(self) -> int:
        return 1

    def apply(self, state: Tensor, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return state, self.lr * grad


def test_a_rule_may_use_names_that_rules_of_fluxlike_use() -> None:
    model = {"w": torch.ones(2)}
    state = fl.setup(fl.OptimiserChain(Namesakes(), fl.ClipGrad(1.0)), model)
    model, state = fl.update(fl.adjust(state, 0.5), model, {"w": torch.ones(2)})
    assert model["w"].tolist() == [0.5, 0.5]
    assert fl.setup(fl.OptimiserChain(Namesakes(), fl.ClipGrad(1.0)), model, carry=state) is not None
    with pytest.raises(ValueError, match="no rule of the state keeps an average"):
        fl.averaged(state, model)


@fl.functor
@dataclass(frozen=True)
class NoBias(fl.Adam):
    """Adam with another part of its formula; torch's kernel knows nothing of it."""

    def corrections(self, t: Any) -> Any:
        return 1.0, 1.0


def test_a_part_of_a_formula_may_be_overridden() -> None:
    model, grads = {"w": torch.ones(2)}, {"w": torch.ones(2)}
    state = fl.setup(NoBias(0.1), model)
    step = fl.steps(state, model, grads)[0]["w"]
    for donate in (False, True):
        moved = fl.update(state, fl.tree.clone(model), grads, donate=donate)[0]["w"]
        torch.testing.assert_close(1 - moved, step)
        state = fl.setup(NoBias(0.1), model)


@dataclass(frozen=True)
class InPlace:
    def init(self, param: Tensor) -> Tensor:
        return torch.zeros_like(param)

    def apply(self, state: Tensor, param: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        return state.mul_(0.9).add_(grad), 0.1 * state


def test_a_rule_that_changes_its_state_in_place_is_named() -> None:
    model = {"w": torch.ones(2)}
    with pytest.raises(ValueError, match=r"InPlace at \['w'\]: apply changed its arguments in place"):
        fl.update(fl.setup(InPlace(), model), model, {"w": torch.ones(2)})
