"""Rules around rules: what each wrapper does, alone, in chains and around others."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl
from fluxlike import schedules
from fluxlike.optimisers.wrappers.wrapper import Wrapper

CHAIN = fl.OptimiserChain


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def start() -> dict[str, Tensor]:
    return {"a": randn(3), "b": randn(2, 2, seed=1)}


def grads_at(t: int) -> dict[str, Tensor]:
    return {"a": randn(3, seed=100 + t), "b": randn(2, 2, seed=200 + t)}


def run(rule: Any, grads: list[Any], model: Any = None) -> tuple[Any, Any]:
    model = start() if model is None else model
    state = fl.setup(rule, model)
    for g in grads:
        model, state = fl.update(state, model, g)
    return model, state


def close(a: Any, b: Any) -> None:
    assert fl.tree.allclose(a, b, rtol=1e-12, atol=1e-12)


def equal(a: Any, b: Any) -> bool:
    return fl.tree.allclose(a, b, rtol=0, atol=0)


FOUR = [grads_at(t) for t in range(4)]

AROUND: dict[str, Callable[[Any], Any]] = {
    "EMA": lambda r: fl.EMA(r, decay=0.5),
    "Lookahead": lambda r: fl.Lookahead(r, k=10),
    "Scheduled": lambda r: fl.Scheduled(r, lr=schedules.Constant(0.1)),
    "ApplyIfFinite": fl.ApplyIfFinite,
    "MixedPrecision": lambda r: fl.MixedPrecision(torch.float64, r),
}
around = pytest.mark.parametrize("wrap", AROUND.values(), ids=AROUND)


# Any wrapper


def test_every_public_wrapper_is_in_the_table() -> None:
    public = {n for n in fl.__all__ if isinstance(k := getattr(fl, n), type) and issubclass(k, Wrapper)}
    assert public - {"OptimiserChain"} == set(AROUND)


@around
@pytest.mark.parametrize(
    "inside",
    [
        fl.Descent(0.1),
        fl.Adam(0.1),
        CHAIN(fl.ClipGlobalNorm(0.5), fl.Adam(0.1)),
        CHAIN(fl.WeightDecay(0.1), fl.ClipNorm(0.5), fl.Momentum(0.1)),
        CHAIN(fl.Momentum(0.1), fl.ClipGrad(0.1)),
    ],
    ids=["Descent", "Adam", "clip, Adam", "decay, clip, Momentum", "Momentum, clip"],
)
def test_a_wrapper_moves_the_parameters_as_the_rule_inside(wrap: Any, inside: Any) -> None:
    close(run(wrap(inside), FOUR)[0], run(inside, FOUR)[0])


@around
def test_a_wrapper_in_a_chain_gets_what_the_link_before_made(wrap: Any) -> None:
    expected = run(CHAIN(fl.ClipGlobalNorm(0.5), fl.Adam(0.1)), FOUR)[0]
    close(run(CHAIN(fl.ClipGlobalNorm(0.5), wrap(fl.Adam(0.1))), FOUR)[0], expected)


COPYING = {"EMA", "Lookahead", "MixedPrecision"}


@pytest.mark.parametrize("name", sorted(AROUND.keys() - COPYING))
def test_a_wrapper_may_stand_before_another_link(name: str) -> None:
    wrap = AROUND[name]
    expected = run(CHAIN(fl.Momentum(0.1), fl.ClipGrad(0.1)), FOUR)[0]
    close(run(CHAIN(wrap(fl.Momentum(0.1)), fl.ClipGrad(0.1)), FOUR)[0], expected)


@pytest.mark.parametrize("rule", [*(AROUND[name](fl.Adam()) for name in sorted(COPYING)), fl.ScheduleFree()])
def test_nothing_comes_after_a_rule_that_keeps_a_copy_of_the_parameters(rule: Any) -> None:
    with pytest.raises(ValueError, match="keeps a copy of the parameters that it moves"):
        CHAIN(rule, fl.ClipGrad(0.1))
    with pytest.raises(ValueError, match="keeps a copy of the parameters that it moves"):
        CHAIN(fl.ApplyIfFinite(rule), fl.ClipGrad(0.1))


@around
@pytest.mark.parametrize("other", AROUND.values(), ids=AROUND)
def test_wrappers_in_wrappers_move_as_the_rule_inside(wrap: Any, other: Any) -> None:
    close(run(wrap(other(fl.Adam(0.1))), FOUR)[0], run(fl.Adam(0.1), FOUR)[0])


@around
def test_steps_of_a_wrapper_are_what_update_subtracts(wrap: Any) -> None:
    rule = wrap(fl.Adam(0.1))
    model, state = run(rule, FOUR)
    taken, after = fl.steps(state, model, FOUR[0])
    moved, expected = fl.update(state, model, FOUR[0])
    close(fl.tree.sub(model, taken), moved)
    close(after, expected)


@around
def test_a_wrapper_applied_by_hand_gives_the_step_of_update(wrap: Any) -> None:
    rule, x, g = wrap(fl.Adam(0.1)), randn(3), randn(3, seed=1)
    _, step = rule.apply(rule.init(x), x, g)
    close(x - step, fl.update(fl.setup(rule, x), x, g)[0])


@around
def test_a_run_under_a_wrapper_goes_on_from_a_file_exactly(wrap: Any, tmp_path: Path) -> None:
    rule = wrap(CHAIN(fl.AccumGrad(2), fl.Adam(0.1)))
    model, state = run(rule, FOUR[:3])
    fl.save(tmp_path / "run.safetensors", {"model": model, "state": state})
    like = {"model": start(), "state": fl.setup(rule, start())}
    loaded = fl.load(tmp_path / "run.safetensors", like=like)
    straight = fl.update(state, model, FOUR[3])
    assert equal(straight, fl.update(loaded["state"], loaded["model"], FOUR[3]))


@around
def test_a_missing_gradient_leaves_the_state_of_a_wrapper_alone(wrap: Any) -> None:
    model, state = run(wrap(fl.Adam(0.1)), FOUR)
    moved, after = fl.update(state, model, {**FOUR[0], "b": None})
    assert moved["b"] is model["b"]
    assert after["b"] is state["b"]


@around
def test_ties_stay_ties_under_a_wrapper(wrap: Any) -> None:
    w = randn(3)
    model = {"a": w, "b": w}
    moved, state = run(wrap(fl.Adam(0.1)), [{"a": w, "b": w}] * 2, model)
    assert moved["a"] is moved["b"]
    mine, theirs = fl.fleaves(state["a"]), fl.fleaves(state["b"])
    assert all(x is y for x, y in zip(mine, theirs, strict=True))
    single = run(wrap(fl.Adam(0.1)), [{"a": 2 * w}] * 2, {"a": w})[0]
    close(moved["a"], single["a"])


@around
def test_an_ensemble_under_a_wrapper_trains_as_its_members_alone(wrap: Any) -> None:
    rule = wrap(CHAIN(fl.AccumGrad(2), fl.Adam(0.1)))
    models, grads = randn(3, 4), randn(3, 4, seed=1)

    def train(w: Tensor, g: Tensor) -> Tensor:
        state = fl.setup(rule, w)
        for t in range(4):
            w, state = fl.update(state, w, g * (t + 1))
        return w

    alone = torch.stack([train(w, g) for w, g in zip(models, grads, strict=True)])
    assert_close(torch.vmap(train)(models, grads), alone, rtol=1e-10, atol=1e-10)


@around
def test_a_step_under_a_wrapper_is_differentiable(wrap: Any) -> None:
    model, g = randn(3), randn(3, seed=1)
    rule = wrap(fl.Momentum(0.1))
    slope = fl.gradient(lambda g: fl.update(fl.setup(rule, model), model, g)[0].sum(), g)
    assert_close(slope, torch.full_like(g, -0.1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("what", [fl.Adam, 0.1, None, "adam"], ids=["a class", "a number", "None", "text"])
@around
def test_a_wrapper_of_no_rule_says_what_to_write(wrap: Any, what: Any) -> None:
    with pytest.raises(TypeError, match=r"is around a rule, found .*; write (a rule, such as )?Adam\(\)"):
        wrap(what)


# repr

NAMES = {k: getattr(fl, k) for k in fl.__all__} | {k: getattr(schedules, k) for k in schedules.__all__}
NAMES["torch"] = torch
PRINTED = [
    CHAIN(),
    CHAIN(fl.ClipNorm(1.0), fl.AccumGrad(2), fl.Adam(0.1)),
    fl.EMA(fl.Adam(0.1), decay=0.5),
    fl.Lookahead(fl.Adam(0.1), k=2, alpha=0.3),
    fl.ApplyIfFinite(fl.Adam(0.1)),
    fl.MixedPrecision(torch.float32, fl.AdamW(0.1)),
    fl.Scheduled(fl.Adam(), lr=schedules.Cosine(0.1, 0.0, 10), betas=(schedules.Exp(0.9, 0.5), 0.999)),
    fl.Scheduled(CHAIN(fl.ClipNorm(1.0), fl.Adam()), max_norm=0.5, lr=schedules.Step(0.1, 0.5, (3, 5))),
    CHAIN(fl.ClipNorm(1.0), fl.EMA(fl.MixedPrecision(torch.float64, fl.Lookahead(fl.Adam())))),
    fl.ApplyIfFinite(fl.Scheduled(CHAIN(fl.AccumGrad(2), fl.EMA(fl.Lion())), lr=0.1)),
]


@pytest.mark.parametrize("rule", PRINTED, ids=lambda r: type(r).__name__)
def test_a_repr_can_be_written_as_code(rule: Any) -> None:
    assert eval(repr(rule), dict(NAMES)) == rule


@pytest.mark.parametrize("rule", PRINTED, ids=lambda r: type(r).__name__)
def test_a_repr_of_a_rule_counts_no_parameters(rule: Any) -> None:
    assert "#" not in repr(rule)
    assert "parameters" not in repr(rule)


# Scheduled


def moved_by(rule: Any, n: int, x: Tensor | None = None) -> list[float]:
    """What each of n steps with a gradient of ones takes off."""
    x = torch.zeros(1, dtype=torch.float64) if x is None else x
    state, taken = fl.setup(rule, x), []
    for _ in range(n):
        new, state = fl.update(state, x, torch.ones_like(x))
        taken.append(float(x - new))
        x = new
    return taken


SCHEDULES = [
    schedules.Constant(0.5),
    schedules.Step(0.5, 0.5, (1, 3)),
    schedules.Exp(0.5, 0.8),
    schedules.Inv(0.5, 0.1, 2.0),
    schedules.Poly(0.5, 2, 4),
    schedules.Cosine(0.5, 0.1, 4),
    schedules.Triangle(0.1, 0.5, 4),
    schedules.Sin(0.1, 0.5, 4),
    schedules.Warmup(schedules.Exp(0.5, 0.8), 3),
    schedules.Sequence((schedules.Constant(0.5), 3), (schedules.Exp(0.4, 0.5), 3)),
    schedules.Loop(schedules.Exp(0.5, 0.5), 3),
    schedules.Shifted(schedules.Exp(0.5, 0.5), 2),
    lambda t: 0.5 / (t + 1),
    0.25,
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_the_rate_of_a_step_is_the_schedule_at_the_steps_before(schedule: Any) -> None:
    wanted = [schedule(t) if callable(schedule) else schedule for t in range(8)]
    assert moved_by(fl.Scheduled(fl.Descent(), lr=schedule), 8) == pytest.approx(wanted, rel=1e-12)


def test_a_schedule_past_its_end_holds_its_last_value() -> None:
    taken = moved_by(fl.Scheduled(fl.Descent(), lr=schedules.Cosine(0.5, 0.1, 3)), 9)
    assert taken[3:] == pytest.approx([0.1] * 6, rel=1e-12)
    assert taken[2] > 0.1


def test_a_constant_schedule_is_the_rule_itself() -> None:
    for rule in (fl.Adam, fl.AdamW, fl.Momentum, fl.Lion, fl.ScheduleFree):
        close(run(fl.Scheduled(rule(), lr=0.03), FOUR)[0], run(rule(0.03), FOUR)[0])


def test_one_of_a_pair_can_be_scheduled() -> None:
    scheduled = fl.Scheduled(fl.Adam(0.1), betas=(schedules.Exp(0.9, 0.5), 0.99))
    model = start()
    state = fl.setup(scheduled, model)
    plain, plain_state = model, fl.setup(fl.Adam(0.1), model)
    for t in range(3):
        plain_state = fl.adjust(plain_state, betas=(0.9 * 0.5**t, 0.99))
        plain, plain_state = fl.update(plain_state, plain, FOUR[t])
        model, state = fl.update(state, model, FOUR[t])
    close(model, plain)


def test_every_link_that_has_the_name_is_scheduled() -> None:
    rule = fl.Scheduled(CHAIN(fl.WeightDecay(), fl.AdamW(0.1)), weight_decay=schedules.Constant(0.3))
    close(run(rule, FOUR)[0], run(CHAIN(fl.WeightDecay(0.3), fl.AdamW(0.1, weight_decay=0.3)), FOUR)[0])


def test_a_scheduled_link_of_a_chain_leaves_the_others_alone() -> None:
    rule = CHAIN(fl.Scheduled(fl.ClipGrad(), delta=schedules.Exp(1.0, 0.5)), fl.Descent(1.0))
    assert moved_by(rule, 3) == pytest.approx([1.0, 0.5, 0.25], rel=1e-12)


def test_the_inner_of_two_schedules_of_one_name_gives_way_to_the_outer() -> None:
    rule = fl.Scheduled(fl.Scheduled(fl.Descent(), lr=lambda t: 1.0), lr=lambda t: 0.5)
    assert moved_by(rule, 2) == [0.5, 0.5]


def test_the_outer_schedule_wins_for_each_parameter_where_one_of_them_rested() -> None:
    rule = fl.Scheduled(fl.Scheduled(fl.Descent(), lr=lambda t: 100.0), lr=schedules.Exp(1.0, 0.5))
    model = {"a": torch.zeros(1).double(), "b": torch.zeros(1).double()}
    one = torch.ones(1).double()
    moved, _ = run(rule, [{"a": one, "b": None}, {"a": one, "b": one}], model)
    assert (float(moved["a"]), float(moved["b"])) == (-1.5, -1.0)


def test_schedules_of_two_names_may_be_nested() -> None:
    rule = fl.Scheduled(fl.Scheduled(fl.Momentum(), lr=schedules.Exp(0.5, 0.5)), momentum=1e-9)
    assert moved_by(rule, 3) == pytest.approx([0.5, 0.25, 0.125], rel=1e-8)


def test_a_scheduled_state_counts_its_steps() -> None:
    _, state = run(fl.Scheduled(fl.Adam(), lr=schedules.Constant(0.1)), FOUR)
    assert state["a"].state.step == 4
    assert state["a"].state.inner.step == 4


def test_only_steps_that_accumgrad_lets_through_count() -> None:
    inner = CHAIN(fl.AccumGrad(2), fl.Descent())
    taken = moved_by(fl.Scheduled(inner, lr=schedules.Exp(0.5, 0.5)), 6)
    assert taken == pytest.approx([0, 0.5, 0, 0.25, 0, 0.125], rel=1e-12)
    chained = CHAIN(fl.AccumGrad(2), fl.Scheduled(fl.Descent(), lr=schedules.Exp(0.5, 0.5)))
    assert moved_by(chained, 6) == pytest.approx(taken, rel=1e-12)


def test_a_parameter_that_rested_is_behind_in_its_schedule() -> None:
    rule = fl.Scheduled(fl.Descent(), lr=schedules.Exp(1.0, 0.5))
    model = {"a": torch.zeros(1).double(), "b": torch.zeros(1).double()}
    one = torch.ones(1).double()
    moved, state = run(rule, [{"a": one, "b": one}, {"a": one, "b": None}, {"a": one, "b": one}], model)
    assert float(moved["a"]) == -1.75
    assert float(moved["b"]) == -1.5
    assert (int(state["a"].state.step), int(state["b"].state.step)) == (3, 2)


@pytest.mark.parametrize("new", [0.25, schedules.Exp(0.25, 0.5), lambda t: 0.25])
def test_adjust_replaces_the_schedule_of_a_name(new: Any) -> None:
    x = torch.zeros(1).double()
    x, state = run(fl.Scheduled(fl.Descent(), lr=schedules.Exp(0.5, 0.5)), [torch.ones(1).double()] * 2, x)
    for adjusted in (fl.adjust(state, new), fl.adjust(state, lr=new)):
        moved, after = fl.update(adjusted, x, torch.ones(1).double())
        assert float(x - moved) == pytest.approx(new(2) if callable(new) else new, rel=1e-12)
        assert after.state.step == 3
    assert state.rule.schedules == (("lr", schedules.Exp(0.5, 0.5)),)


def test_adjust_of_another_name_goes_inside() -> None:
    rule = fl.Scheduled(CHAIN(fl.ClipNorm(1.0), fl.Adam()), lr=schedules.Constant(0.1))
    state = fl.adjust(fl.setup(rule, start()), eps=0.5, max_norm=2.0)
    expected = fl.Scheduled(CHAIN(fl.ClipNorm(2.0), fl.Adam(eps=0.5)), lr=schedules.Constant(0.1))
    assert state["a"].rule == expected


def test_adjust_of_a_name_that_is_not_there_names_those_that_are() -> None:
    state = fl.setup(fl.Scheduled(fl.Momentum(), lr=schedules.Constant(0.1)), start())
    with pytest.raises(
        ValueError, match=r"no rule there has a hyperparameter 'eta'; they have lr, momentum$"
    ):
        fl.adjust(state, eta=1.0)


def test_adjust_of_a_scheduled_name_at_one_place() -> None:
    state = fl.setup(fl.Scheduled(fl.Descent(), lr=schedules.Constant(0.1)), start())
    state = fl.adjust(state, 0.5, where="['b']")
    moved, _ = fl.update(state, start(), FOUR[0])
    close(moved, {"a": start()["a"] - 0.1 * FOUR[0]["a"], "b": start()["b"] - 0.5 * FOUR[0]["b"]})


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: fl.Scheduled(fl.Adam()), TypeError, "got no schedule: write Scheduled"),
        (lambda: fl.Scheduled(fl.Adam(), lr="x"), TypeError, "lr='x' is no schedule; write one such as"),
        (lambda: fl.Scheduled(fl.Adam(), lr=schedules.Cosine), TypeError, "is no schedule"),
        (lambda: fl.Scheduled(fl.Adam(), lr=None), TypeError, "lr=None is no schedule"),
        (
            lambda: fl.Scheduled(fl.Adam(), eta=0.1),
            ValueError,
            "no hyperparameter 'eta'; it has betas, eps, lr",
        ),
    ],
)
def test_a_wrong_schedule_is_an_error(make: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_adjusting_to_something_that_is_no_schedule_is_an_error() -> None:
    state = fl.setup(fl.Scheduled(fl.Adam(), lr=schedules.Constant(0.1)), start())
    with pytest.raises(TypeError, match=r"lr=\{'x': 1\} is no schedule"):
        fl.adjust(state, lr={"x": 1})


def test_a_schedule_that_gives_a_value_that_the_rule_refuses_is_an_error() -> None:
    rule = fl.Scheduled(fl.Descent(), lr=lambda t: 0.1 - t)
    x = torch.zeros(1)
    x, state = fl.update(fl.setup(rule, x), x, x)
    with pytest.raises(ValueError, match=r"lr=-0\.9"):
        fl.update(state, x, x)


# AccumGrad

ACCUMULATED = [
    fl.Adam(0.1),
    CHAIN(fl.ClipGlobalNorm(0.5), fl.Adam(0.1)),
    fl.EMA(fl.Adam(0.1), decay=0.5),
    fl.Lookahead(fl.Adam(0.1), k=2),
    fl.Scheduled(fl.Adam(), lr=schedules.Exp(0.1, 0.5)),
    fl.MixedPrecision(torch.float64, fl.Adam(0.1)),
    fl.ApplyIfFinite(fl.Adam(0.1)),
    fl.ScheduleFree(0.1),
    fl.Lion(0.1),
    fl.NAdam(0.1),
    fl.Muon(0.1),
]
each_accumulated = pytest.mark.parametrize("rule", ACCUMULATED, ids=lambda r: type(r).__name__)


def accumulated(rule: Any, n: int) -> Any:
    """The rule behind an AccumGrad, inside its wrapper where it has one."""
    return CHAIN(fl.AccumGrad(n), rule)


@each_accumulated
@pytest.mark.parametrize("n", [2, 3])
def test_n_gradients_move_as_their_mean_at_once(rule: Any, n: int) -> None:
    grads = [grads_at(t) for t in range(2 * n)]
    halves = (grads[:n], grads[n:])
    means = [fl.tree.scale(_sum(half), 1 / n) for half in halves]
    found, state = run(accumulated(rule, n), grads)
    expected, expected_state = run(rule, means)
    close(found, expected)
    for k in found:
        inner = expected_state[k].state
        inner = inner if isinstance(rule, CHAIN) else (inner,)
        close(state[k].state[1:], inner)


def _sum(trees: list[Any]) -> Any:
    total = trees[0]
    for tree in trees[1:]:
        total = fl.tree.add(total, tree)
    return total


@each_accumulated
def test_between_nothing_but_the_accumulator_moves(rule: Any) -> None:
    model, state = run(accumulated(rule, 3), FOUR[:3])
    for g in FOUR[:2]:
        moved, after = fl.update(state, model, g)
        assert equal(moved, model)
        for k in model:
            assert equal(after[k].state[1:], state[k].state[1:])
        model, state = moved, after


OUTSIDE = [
    lambda r: fl.EMA(r, decay=0.5),
    lambda r: fl.Lookahead(r, k=2),
    lambda r: fl.Scheduled(r, lr=schedules.Exp(0.1, 0.5)),
    lambda r: fl.MixedPrecision(torch.float64, r),
    lambda r: fl.EMA(fl.Lookahead(fl.Scheduled(r, lr=schedules.Exp(0.1, 0.5)), k=2), decay=0.5),
]


@pytest.mark.parametrize("wrap", OUTSIDE, ids=["EMA", "Lookahead", "Scheduled", "MixedPrecision", "three"])
def test_wrappers_around_an_accumulator_hold_still_between(wrap: Any) -> None:
    grads = [grads_at(t) for t in range(6)]
    means = [fl.tree.scale(_sum(grads[2 * i : 2 * i + 2]), 0.5) for i in range(3)]
    outside, state = run(wrap(CHAIN(fl.AccumGrad(2), fl.Adam(0.1))), grads)
    plain, plain_state = run(wrap(fl.Adam(0.1)), means)
    close(outside, plain)
    if not isinstance(wrap(fl.Adam(0.1)), (fl.Scheduled, fl.MixedPrecision)):
        close(fl.averaged(state, outside), fl.averaged(plain_state, plain))
    half, half_state = fl.update(state, outside, grads[0])
    assert equal(half, outside)
    before, after = (
        [x for x in fl.fleaves(s["a"]) if x.dtype == torch.int64 or x.shape == (3,)]
        for s in (state, half_state)
    )
    changed = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
    assert sum(changed) == 2  # the accumulator's mean and its counter


def test_an_accumulator_of_one_is_none() -> None:
    for rule in (fl.Descent(0.1), fl.Adam(0.1), fl.EMA(fl.Adam(0.1))):
        close(run(CHAIN(fl.AccumGrad(1), rule), FOUR)[0], run(rule, FOUR)[0])


def test_an_accumulator_alone_takes_the_mean_off() -> None:
    moved, _ = run(fl.AccumGrad(2), FOUR[:2])
    close(moved, fl.tree.sub(start(), fl.tree.scale(fl.tree.add(*FOUR[:2]), 0.5)))


def test_a_parameter_that_misses_a_gradient_waits_for_its_own_n() -> None:
    rule = CHAIN(fl.AccumGrad(2), fl.Adam(0.1))
    grads = [FOUR[0], {**FOUR[1], "b": None}, FOUR[2], FOUR[3]]
    moved, state = run(rule, grads)
    alone_a = run(rule, [{"a": g["a"]} for g in grads], {"a": start()["a"]})
    alone_b = run(rule, [{"b": g["b"]} for g in grads if g["b"] is not None], {"b": start()["b"]})
    close(moved, {"a": alone_a[0]["a"], "b": alone_b[0]["b"]})
    close(state["a"], alone_a[1]["a"])
    close(state["b"], alone_b[1]["b"])
    assert [int(state[k].state[0].step) for k in "ab"] == [4, 3]
    assert [int(state[k].state[1].step) for k in "ab"] == [2, 1]


def test_an_accumulator_in_an_accumulator_waits_for_the_product() -> None:
    grads = [grads_at(t) for t in range(6)]
    nested = CHAIN(fl.AccumGrad(2), fl.AccumGrad(3), fl.Adam(0.1))
    close(run(nested, grads)[0], run(CHAIN(fl.AccumGrad(6), fl.Adam(0.1)), grads)[0])
    assert equal(run(nested, grads[:5])[0], start())


def test_a_users_rule_behind_an_accumulator_is_held_by_its_mask() -> None:
    class Mine:
        def init(self, param: Tensor) -> dict[str, Tensor]:
            return {"sum": torch.zeros_like(param)}

        def apply(self, state: Any, param: Tensor, grad: Tensor) -> Any:
            return {"sum": state["sum"] + grad}, 0.1 * (state["sum"] + grad)

    fl.functor(Mine)
    grads = FOUR
    means = [fl.tree.scale(fl.tree.add(*grads[i : i + 2]), 0.5) for i in (0, 2)]
    close(run(CHAIN(fl.AccumGrad(2), Mine()), grads)[0], run(Mine(), means)[0])


# MixedPrecision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_steps_too_small_for_the_model_add_up(dtype: torch.dtype) -> None:
    x, g = torch.ones(1, dtype=dtype), torch.ones(1, dtype=dtype)
    plain, mixed = fl.Descent(1e-4), fl.MixedPrecision(torch.float32, fl.Descent(1e-4))
    assert torch.equal(run(plain, [g] * 100, x)[0], x)
    moved, state = run(mixed, [g] * 100, x)
    assert_close(state.state.master, torch.tensor([0.99]), rtol=1e-5, atol=0)
    assert torch.equal(moved, state.state.master.to(dtype))


def test_a_float64_master_of_a_float32_model_moves_as_a_float64_run() -> None:
    narrow = {k: x.float() for k, x in start().items()}
    wide = {k: x.double() for k, x in narrow.items()}
    grads = [{k: g.float() for k, g in gs.items()} for gs in FOUR]
    moved, state = run(fl.MixedPrecision(torch.float64, fl.Adam(0.1)), grads, narrow)
    expected, expected_state = run(fl.Adam(0.1), [fl.f64(g) for g in grads], wide)
    for k in moved:
        assert moved[k].dtype == torch.float32
        assert equal(state[k].state.master, expected[k])
        assert equal(state[k].state.inner, expected_state[k].state)
        assert torch.equal(moved[k], expected[k].float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_master_is_never_the_model(dtype: torch.dtype) -> None:
    model = {k: x.to(dtype) for k, x in start().items()}
    rule = fl.MixedPrecision(torch.float64, fl.Descent(0.1))
    state = fl.setup(rule, model)
    for g in FOUR:
        for k, x in model.items():
            assert state[k].state.master.data_ptr() != x.data_ptr()
        model, state = fl.update(state, model, {k: x.to(dtype) for k, x in g.items()})


def test_the_rate_inside_is_adjusted() -> None:
    state = fl.adjust(fl.setup(fl.MixedPrecision(torch.float64, fl.Descent(0.1)), start()), 0.5)
    assert state["a"].rule == fl.MixedPrecision(torch.float64, fl.Descent(0.5))
    close(fl.update(state, start(), FOUR[0])[0], fl.tree.sub(start(), fl.tree.scale(FOUR[0], 0.5)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.int64, None, "float32"])
def test_a_master_of_another_dtype_is_refused(dtype: Any) -> None:
    with pytest.raises(ValueError, match=r"write MixedPrecision\(torch\.float32, rule\)"):
        fl.MixedPrecision(dtype, fl.Adam())


def test_a_rule_in_the_place_of_the_dtype_shows_the_order() -> None:
    with pytest.raises(
        TypeError, match=r"dtype first, then the rule: write MixedPrecision\(torch\.float32, Adam\("
    ):
        fl.MixedPrecision(fl.Adam(), torch.float32)


def test_a_complex_model_has_a_master_too() -> None:
    model = torch.complex(randn(3), randn(3, seed=1))
    rule = fl.MixedPrecision(torch.float64, fl.Adam(0.1))
    close(run(rule, [model] * 3, model)[0], run(fl.Adam(0.1), [model] * 3, model)[0])


# ApplyIfFinite

BAD = {"a": torch.tensor([1.0, math.nan, 1.0], dtype=torch.float64), "b": torch.ones(2, 2).double()}
INF = {"a": torch.ones(3).double(), "b": torch.full((2, 2), math.inf, dtype=torch.float64)}


@pytest.mark.parametrize("bad", [BAD, INF], ids=["nan", "inf"])
@pytest.mark.parametrize(
    "inside",
    [fl.Descent(0.1), fl.Adam(0.1), fl.EMA(fl.Adam(0.1)), fl.Lookahead(fl.Lion(0.1), k=1),
     fl.MixedPrecision(torch.float64, fl.Adam(0.1)), fl.Scheduled(fl.Adam(), lr=schedules.Exp(0.1, 0.5)),
     CHAIN(fl.ClipGlobalNorm(1.0), fl.Adam(0.1)), fl.Muon(0.1), fl.ScheduleFree(0.1)],
    ids=lambda r: type(r).__name__,
)  # fmt: skip
def test_a_bad_gradient_anywhere_holds_back_all_that_share_the_rule(inside: Any, bad: Any) -> None:
    model, state = run(fl.ApplyIfFinite(inside), FOUR[:2])
    moved, after = fl.update(state, model, bad)
    assert equal(moved, model)
    for k in model:
        assert equal(after[k].state.inner, state[k].state.inner)
        assert (int(after[k].state.in_a_row), int(after[k].state.skipped)) == (1, 1)
    straight = fl.update(state, model, FOUR[2])
    again = fl.update(after, moved, FOUR[2])
    assert equal(straight[0], again[0])
    assert all(equal(straight[1][k].state.inner, again[1][k].state.inner) for k in model)


def test_skipped_steps_are_counted_in_a_row_and_in_all() -> None:
    rule = fl.ApplyIfFinite(fl.Adam(0.1))
    model = start()
    state, seen = fl.setup(rule, model), []
    for g in (FOUR[0], BAD, INF, FOUR[1], BAD, FOUR[2]):
        model, state = fl.update(state, model, g)
        seen.append((int(state["b"].state.in_a_row), int(state["b"].state.skipped)))
    assert seen == [(0, 0), (1, 1), (2, 2), (0, 2), (1, 3), (0, 3)]
    close(model, run(fl.Adam(0.1), FOUR[:3])[0])


def test_a_parameter_with_another_rule_is_not_held_back() -> None:
    state = fl.setup(lambda p: fl.ApplyIfFinite(fl.Descent(0.1 if "a" in p else 0.2)), start())
    moved, after = fl.update(state, start(), BAD)
    assert equal(moved["a"], start()["a"])
    close(moved["b"], start()["b"] - 0.2 * BAD["b"])
    assert (int(after["a"].state.skipped), int(after["b"].state.skipped)) == (1, 0)


def test_a_bad_gradient_of_a_frozen_parameter_does_not_count() -> None:
    state = fl.freeze(fl.setup(fl.ApplyIfFinite(fl.Descent(0.1)), start()), "['a']")
    moved, _ = fl.update(state, start(), BAD)
    close(moved["b"], start()["b"] - 0.1 * BAD["b"])


def test_inside_a_chain_it_sees_what_the_links_before_made() -> None:
    rule = CHAIN(fl.ClipGrad(1.0), fl.ApplyIfFinite(fl.Descent(0.1)))
    moved, state = run(rule, [INF])  # a clipped infinity is finite
    close(moved, fl.fmap(lambda x: x - 0.1, start()))
    assert state["a"].state[1].skipped == 0
    moved, state = run(rule, [BAD])
    assert equal(moved, start())


def test_around_a_chain_it_looks_before_its_links() -> None:
    moved, state = run(fl.ApplyIfFinite(CHAIN(fl.ClipGrad(1.0), fl.Descent(0.1))), [INF])
    assert equal(moved, start())
    assert state["a"].state.skipped == 1


def test_around_an_accumulator_a_bad_gradient_is_left_out_of_the_mean() -> None:
    rule = fl.ApplyIfFinite(CHAIN(fl.AccumGrad(2), fl.Adam(0.1)))
    grads = [BAD, FOUR[0], BAD, INF, FOUR[1], BAD, FOUR[2], FOUR[3]]
    moved, state = run(rule, grads)
    close(moved, run(CHAIN(fl.AccumGrad(2), fl.Adam(0.1)), FOUR)[0])
    assert state["a"].state.skipped == 4
    assert state["a"].state.inner[0].step == 4


def test_behind_an_accumulator_a_bad_mean_is_skipped_whole() -> None:
    rule = CHAIN(fl.AccumGrad(2), fl.ApplyIfFinite(fl.Adam(0.1)))
    moved, state = run(rule, [BAD, FOUR[0], FOUR[1], FOUR[2]])
    close(moved, run(CHAIN(fl.AccumGrad(2), fl.Adam(0.1)), FOUR[1:3])[0])
    assert (int(state["a"].state[1].skipped), int(state["a"].state[1].in_a_row)) == (1, 0)


def test_counts_hold_still_while_an_accumulator_waits() -> None:
    rule = CHAIN(fl.AccumGrad(2), fl.ApplyIfFinite(fl.Adam(0.1)))
    model, state = run(rule, [BAD, FOUR[0]])
    assert state["a"].state[1].in_a_row == 1
    _, after = fl.update(state, model, FOUR[1])
    assert after["a"].state[1].in_a_row == 1


def test_a_bad_gradient_is_skipped_under_vmap_for_its_member_alone() -> None:
    rule = fl.ApplyIfFinite(fl.Adam(0.1))
    models, grads = randn(2, 3), torch.stack([BAD["a"], FOUR[0]["a"]])
    moved = torch.vmap(lambda w, g: fl.update(fl.setup(rule, w), w, g)[0])(models, grads)
    assert torch.equal(moved[0], models[0])
    close(moved[1], run(fl.Adam(0.1), [grads[1]], models[1])[0])


# Lookahead and EMA


def test_lookahead_meets_every_k_steps() -> None:
    x = torch.zeros(1).double()
    state = fl.setup(fl.Lookahead(fl.Descent(1.0), k=3, alpha=0.5), x)
    seen = []
    for _ in range(6):
        x, state = fl.update(state, x, -torch.ones(1).double())
        seen.append((float(x), float(fl.averaged(state, x))))
    assert seen == [(1, 0), (2, 0), (1.5, 1.5), (2.5, 1.5), (3.5, 1.5), (3.0, 3.0)]


def test_ema_follows_the_parameters_after_each_step() -> None:
    model = start()
    state, average = fl.setup(fl.EMA(fl.Adam(0.1), decay=0.7), model), start()
    for g in FOUR:
        model, state = fl.update(state, model, g)
        average = fl.tree.lerp(average, model, 0.3)
        close(fl.averaged(state, model), average)


def test_ema_around_lookahead_averages_the_weights_after_the_meeting() -> None:
    rule = fl.EMA(fl.Lookahead(fl.Descent(0.1), k=2), decay=0.5)
    model = start()
    state, average = fl.setup(rule, model), start()
    for g in FOUR:
        model, state = fl.update(state, model, g)
        average = fl.tree.lerp(average, model, 0.5)
    close(fl.averaged(state, model), average)


def test_ema_of_a_16_bit_model_under_mixed_precision_averages_the_master() -> None:
    model = {"w": torch.ones(2, dtype=torch.bfloat16)}
    rule = fl.MixedPrecision(torch.float32, fl.EMA(fl.Descent(1e-4), decay=0.5))
    _, state = run(rule, [model] * 3, model)
    master, average = state["w"].state.master, state["w"].state.inner.average
    assert_close(master, torch.full((2,), 1 - 3e-4))
    assert_close(average, torch.full((2,), 1 - (0.125 + 0.5 + 1.5) * 1e-4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fl.EMA(fl.Adam(), decay=1.0), r"decay=1\.0"),
        (lambda: fl.Lookahead(fl.Adam(), k=0), "k=0: write a whole number"),
        (lambda: fl.Lookahead(fl.Adam(), k=True), "k=True: write a whole number"),
        (lambda: fl.Lookahead(fl.Adam(), alpha=-1.0), r"alpha=-1\.0"),
        (lambda: fl.AccumGrad(0), "n=0: write a whole number"),
        (lambda: fl.AccumGrad(1.5), r"n=1\.5: write a whole number"),
    ],
)
def test_a_wrong_hyperparameter_of_a_wrapper_is_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
