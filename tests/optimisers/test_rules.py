"""Rules in every form of leaf: 16 bits, 0-d, one by one; hyperparameters as tensors and out of range."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl

RULES: dict[str, Callable[[float], Any]] = {
    "Descent": fl.Descent,
    "Momentum": fl.Momentum,
    "Nesterov": fl.Nesterov,
    "Adam": fl.Adam,
    "Adam, other hyperparameters": lambda lr: fl.Adam(lr, betas=(0.8, 0.95), eps=1e-3),
    "Adam, weight_decay": lambda lr: fl.Adam(lr, weight_decay=0.1),
    "AdamW": fl.AdamW,
    "AdamW, weight_decay": lambda lr: fl.AdamW(lr, weight_decay=0.3),
    "WeightDecay, Momentum": lambda lr: fl.OptimiserChain(fl.WeightDecay(0.1), fl.Momentum(lr)),
}


def start(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "b": (4,), "scalar": (), "v": (2, 2, 3)}
    return {k: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for k, s in shapes.items()}


def gradients(params: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """Gradients that depend on the step and on where the parameters are."""
    generator = torch.Generator().manual_seed(100 + t)
    noise = {
        k: torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        for k, p in params.items()
    }
    return {k: 0.3 * p + noise[k] for k, p in params.items()}


# Golden numbers


def walk(rule: Any, x: Tensor, grads: list[Any]) -> list[Tensor]:
    state, seen = fl.setup(rule, x), []
    for g in grads:
        x, state = fl.update(state, x, g)
        seen.append(x)
    return seen


def test_adam_keeps_the_golden_moments_and_none_changes_nothing() -> None:
    x = torch.ones(1, dtype=torch.float64)
    state = fl.setup(fl.Adam(0.1), x)
    x, state = fl.update(state, x, torch.ones(1, dtype=torch.float64))
    assert_close(float(state.state.exp_avg), 0.1, rtol=0, atol=1e-15)
    assert_close(float(state.state.exp_avg_sq), 0.001, rtol=0, atol=1e-15)
    x, state = fl.update(state, x, torch.zeros(1, dtype=torch.float64))
    assert_close(float(state.state.exp_avg), 0.09, rtol=0, atol=1e-15)
    assert_close(float(state.state.exp_avg_sq), 0.000999, rtol=0, atol=1e-15)
    with pytest.warns(UserWarning, match="found no gradient"):
        after, kept = fl.update(state, x, None)
    assert after is x
    assert kept is state


# 16 bits


def test_a_half_parameter_gets_the_step_of_float32_rounded_once() -> None:
    x = torch.tensor([0.579, -0.729, 0.5493], dtype=torch.float16)
    g = torch.tensor([-0.001497, 0.0001875, -0.013176], dtype=torch.float16)
    state = fl.setup(fl.Adam(1e-4), x)
    after, state = fl.update(state, x, g)
    assert torch.equal(after, x)  # the step is below half the spacing of float16 here
    assert state.state.exp_avg.dtype == torch.float32
    assert_close(state.state.exp_avg_sq, 0.001 * g.float() ** 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", RULES)
def test_16_bit_parameters_keep_their_dtype_and_follow_float32(name: str, dtype: torch.dtype) -> None:
    rule = RULES[name](0.05)
    half = start(dtype)
    state = fl.setup(rule, half)
    wide_state = fl.setup(rule, {k: p.float() for k, p in half.items()})
    for t in range(5):
        grads = gradients(half, t)
        wide = {k: p.float() for k, p in half.items()}
        wide, wide_state = fl.update(wide_state, wide, {k: g.float() for k, g in grads.items()})
        half, state = fl.update(state, half, grads)
        for k in half:
            assert half[k].dtype == dtype
            assert torch.equal(half[k], wide[k].to(dtype))
    moments = [x for x in fl.fleaves(state) if x.is_floating_point()]
    assert all(x.dtype == torch.float32 for x in moments)


# All at once, or one by one


@dataclass(frozen=True)
class OneByOne:
    """A rule without its `apply_all`."""

    rule: Any

    def init(self, param: Tensor) -> Any:
        return self.rule.init(param)

    def apply(self, state: Any, param: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
        return self.rule.apply(state, param, grad)


ALONE = {name: make(0.05) for name, make in RULES.items()} | {
    "AdamW, uncoupled": fl.AdamW(0.05, couple=False),
    "WeightDecay": fl.WeightDecay(0.1),
    "ClipGrad": fl.ClipGrad(0.3),
    "ClipNorm": fl.ClipNorm(0.3),
    "ClipNorm, p=1": fl.ClipNorm(0.3, p=1.0),
    "a chain": fl.OptimiserChain(fl.ClipNorm(0.5), fl.WeightDecay(0.1), fl.Adam(0.05)),
}


@pytest.mark.parametrize("name", ALONE)
def test_all_leaves_at_once_equal_one_by_one(name: str) -> None:
    rule = ALONE[name]
    together = apart = start(torch.float64)
    state, state_apart = fl.setup(rule, together), fl.setup(OneByOne(rule), apart)
    for t in range(5):
        together, state = fl.update(state, together, gradients(together, t))
        apart, state_apart = fl.update(state_apart, apart, gradients(apart, t))
    assert_close(together, apart, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ALONE)
def test_a_rule_applied_by_hand_gives_the_step_of_update(name: str) -> None:
    rule, model = ALONE[name], start(torch.float64)
    taken, _ = fl.steps(fl.setup(rule, model), model, gradients(model, 0))
    for k, g in gradients(model, 0).items():
        _, step = rule.apply(rule.init(model[k]), model[k], g)
        assert_close(taken[k], step, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", ALONE)
def test_a_rule_does_not_write_to_what_it_gets(name: str) -> None:
    rule, model = ALONE[name], start(torch.float64)
    grads = gradients(model, 0)
    _, state = fl.update(fl.setup(rule, model), model, grads)
    before = [x.clone() for x in fl.fleaves((state, model, grads))]
    fl.update(state, model, grads)
    after = fl.fleaves((state, model, grads))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


# Hyperparameters


TENSORS = {
    "Descent": lambda number: fl.Descent(number(0.05)),
    "Momentum": lambda number: fl.Momentum(number(0.05), number(0.8)),
    "Nesterov": lambda number: fl.Nesterov(number(0.05), number(0.8)),
    "Adam": lambda number: fl.Adam(
        number(0.05), (number(0.8), number(0.9)), number(1e-6), weight_decay=number(0.1)
    ),
    "AdamW": lambda number: fl.AdamW(number(0.05), (number(0.8), number(0.9)), weight_decay=number(0.1)),
    "AdamW, uncoupled": lambda number: fl.AdamW(number(0.05), weight_decay=number(0.1), couple=False),
    "WeightDecay": lambda number: fl.WeightDecay(number(0.1)),
    "ClipGrad": lambda number: fl.ClipGrad(number(0.3)),
    "ClipNorm": lambda number: fl.ClipNorm(number(0.3)),
    "ClipGlobalNorm": lambda number: fl.ClipGlobalNorm(number(0.3)),
}


@pytest.mark.parametrize("name", TENSORS)
def test_hyperparameters_may_be_0d_tensors(name: str) -> None:
    make = TENSORS[name]
    plain, tensors = make(float), make(lambda x: torch.tensor(x, dtype=torch.float64))
    one = two = start(torch.float64)
    state, state_two = fl.setup(plain, one), fl.setup(tensors, two)
    for t in range(5):
        one, state = fl.update(state, one, gradients(one, t))
        two, state_two = fl.update(state_two, two, gradients(two, t))
    assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", TENSORS)
def test_a_0d_tensor_of_another_dtype_does_not_change_the_dtype_of_parameters(
    name: str, dtype: torch.dtype
) -> None:
    other = torch.float64 if dtype == torch.float32 else torch.float32
    model = start(dtype)
    state = fl.setup(TENSORS[name](lambda x: torch.tensor(x, dtype=other)), model)
    for t in range(2):
        model, state = fl.update(state, model, gradients(model, t))
    assert {x.dtype for x in model.values()} == {dtype}
    rules_and_states = [entry.state for entry in state.values()]
    assert {x.dtype for x in fl.fleaves(rules_and_states) if x.is_floating_point()} <= {dtype}


@pytest.mark.parametrize("name", [*ALONE, "ClipGlobalNorm"])
def test_a_0d_parameter_has_steps_and_moments_of_its_own_dtype(name: str) -> None:
    rule = ALONE.get(name, fl.ClipGlobalNorm(0.1))
    x = torch.tensor(2.0)
    taken, state = fl.steps(fl.setup(rule, x), x, torch.tensor(3.0))
    assert taken.dtype == torch.float32
    assert {t.dtype for t in fl.fleaves(state) if t.is_floating_point()} <= {torch.float32}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.Descent(-1.0), r"lr=-1\.0: write a number of at least 0"),
        (lambda: fl.Momentum(0.1, 1.0), r"momentum=1\.0: write a number of at least 0 and below 1"),
        (lambda: fl.Nesterov(0.1, -0.1), r"momentum=-0\.1"),
        (lambda: fl.Adam(betas=(0.9, 1.5)), r"betas\[1\]=1\.5"),
        (lambda: fl.Adam(eps=-1e-8), "eps=-1e-08"),
        (lambda: fl.AdamW(weight_decay=-1.0), r"weight_decay=-1\.0"),
        (lambda: fl.Adam(float("nan")), "lr=nan"),
        (lambda: fl.WeightDecay(-0.1), r"weight_decay=-0\.1"),
        (lambda: fl.ClipGrad(-1.0), r"delta=-1\.0"),
        (lambda: fl.ClipNorm(-1.0), r"max_norm=-1\.0"),
        (lambda: fl.ClipGlobalNorm(-1.0), r"max_norm=-1\.0"),
    ],
)
def test_a_hyperparameter_out_of_range_is_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
