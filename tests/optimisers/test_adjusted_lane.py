"""The fast lane goes on where hyperparameters change, and only there."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch

import fluxlike as fl
from fluxlike.optimisers import lane, update

RULES = [fl.Descent(0.1), fl.Momentum(0.1), fl.Adam(0.1), fl.AdamW(0.1), fl.AdaGrad(0.1)]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)


def model() -> Any:
    weight = torch.linspace(-1, 1, 6).reshape(2, 3)
    return {"a": weight, "tied": weight, "b": torch.ones(2)}


def grads(m: Any, k: int) -> Any:
    return {"a": torch.full((2, 3), 0.1 * (k + 1)), "tied": None, "b": torch.full((2,), 0.5 - k)}


def taken_steps(rule: Any, between: Any, donate: bool, steps: int = 4) -> tuple[Any, list[bool]]:
    """A run in which the state is changed before every step, and which steps took the lane."""
    taken, step = [], lane.Lane.step

    def spy(this: Any, *args: Any) -> Any:
        result = step(this, *args)
        taken.append(result is not None)
        return result

    m = fl.tree.clone(model())
    state = fl.setup(rule, m)
    with patch.object(lane.Lane, "step", spy):
        for k in range(steps):
            state = between(state, k)
            m, state = fl.update(state, m, grads(m, k), donate=donate)
    return (m, state), taken


@each_rule
@pytest.mark.parametrize("donate", [False, True])
def test_an_adjusted_state_takes_the_lane_with_the_numbers_of_the_long_way(rule: Any, donate: bool) -> None:
    def between(s: Any, k: int) -> Any:
        return fl.adjust(s, 0.1 / (k + 1))

    found, taken = taken_steps(rule, between, donate)
    with patch.object(update, "lane_of", lambda entries: None):
        wanted, _ = taken_steps(rule, between, donate)
    assert taken == [True] * 3
    assert fl.tree.allclose(found, wanted, rtol=0, atol=0)
    assert found[1]["b"].rule.lr == 0.1 / 4


def test_an_adjusted_place_leaves_the_lane() -> None:
    def between(s: Any, k: int) -> Any:
        return fl.adjust(s, 0.1 / (k + 2), where="['b']")

    (_, state), taken = taken_steps(fl.Adam(0.1), between, donate=False)
    assert not any(taken)
    assert (state["a"].rule.lr, state["b"].rule.lr) == (0.1, 0.02)


def test_a_rule_without_a_kernel_for_its_numbers_leaves_the_lane() -> None:
    def between(s: Any, k: int) -> Any:
        return fl.adjust(s, torch.tensor(0.1)) if k == 2 else s

    _, taken = taken_steps(fl.Adam(0.1), between, donate=False)
    assert taken == [True]


def test_a_state_with_a_foreign_entry_leaves_the_lane() -> None:
    def between(s: Any, k: int) -> Any:
        return fl.adjust({**s, "b": fl.tree.clone(s["b"])}, 0.01) if k == 2 else s

    (_, state), taken = taken_steps(fl.Adam(0.1), between, donate=False)
    assert taken == [True, True]  # the last again
    assert state["b"].rule.lr == 0.01


def test_a_part_of_a_state_can_be_adjusted_after_a_step() -> None:
    m = model()
    _, state = fl.update(fl.setup(fl.Adam(0.1), m), m, grads(m, 0))
    assert fl.adjust([state["a"]], 0.2)[0].rule.lr == 0.2


def test_the_state_that_was_adjusted_goes_on_too() -> None:
    m = model()
    state = fl.setup(fl.Adam(0.1), m)
    m, state = fl.update(state, m, grads(m, 0))
    other = fl.adjust(state, 0.2)
    first, _ = fl.update(state, m, grads(m, 1))
    second, _ = fl.update(other, m, grads(m, 1))
    assert torch.equal((m["b"] - second["b"]), 2 * (m["b"] - first["b"]))


def test_adjusting_to_the_values_that_are_there_gives_the_state_itself() -> None:
    state = fl.setup(fl.Adam(0.1, (0.8, 0.9)), model())
    assert fl.adjust(state, 0.1, betas=(0.8, 0.9)) is state
    assert fl.adjust(state, 0.1, betas=(0.8, 0.95)) is not state


def test_entries_of_tied_places_stay_one_object() -> None:
    state = fl.adjust(fl.setup(fl.Adam(0.1), model()), 0.2)
    assert state["a"] is state["tied"]


def test_rules_of_equal_value_are_one_object_afterwards() -> None:
    state = fl.tree.clone(fl.setup(fl.Adam(0.1), model()))
    adjusted = fl.adjust(state, 0.2)
    assert state["a"].rule is not state["b"].rule
    assert adjusted["a"].rule is adjusted["b"].rule
