"""`setup(carry=)`, `averaged`, `adjust` of every hyperparameter, and `freeze` under wrappers."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl
from fluxlike import schedules

CHAIN = fl.OptimiserChain


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.promote_types(dtype, torch.float64)).to(dtype)


def body_and_head() -> dict[str, Tensor]:
    return {"body": randn(3, 3), "bias": randn(3, seed=1), "head": randn(2, 3, seed=2)}


def grads_at(t: int, model: Any) -> Any:
    return {k: randn(*x.shape, seed=10 * t + i, dtype=x.dtype) for i, (k, x) in enumerate(model.items())}


def trained(rule: Any, model: Any, steps: int = 3) -> tuple[Any, Any]:
    state = fl.setup(rule, model)
    for t in range(steps):
        model, state = fl.update(state, model, grads_at(t, model))
    return model, state


def equal(a: Any, b: Any) -> bool:
    return fl.tree.allclose(a, b, rtol=0, atol=0)


def close(a: Any, b: Any) -> None:
    assert fl.tree.allclose(a, b, rtol=1e-12, atol=1e-12)


RULES = [
    fl.Descent(0.1),
    fl.Momentum(0.1),
    fl.Nesterov(0.1),
    fl.Rprop(0.1),
    fl.RMSProp(0.1, momentum=0.9, centered=True),
    fl.Adam(0.1),
    fl.AdamW(0.1),
    fl.AdaMax(0.1),
    fl.OAdam(0.1),
    fl.AdaGrad(0.1),
    fl.AdaDelta(0.1),
    fl.AMSGrad(0.1),
    fl.NAdam(0.1),
    fl.RAdam(0.1),
    fl.AdaBelief(0.1),
    fl.Lion(0.1),
    fl.Lamb(0.1),
    fl.Adafactor(0.1),
    fl.Muon(0.1),
    fl.ScheduleFree(0.1),
    CHAIN(fl.ClipNorm(1.0), fl.WeightDecay(0.1), fl.Adam(0.1)),
    CHAIN(fl.AccumGrad(2), fl.Adam(0.1)),
    fl.EMA(fl.Adam(0.1), decay=0.5),
    fl.Lookahead(fl.Adam(0.1), k=2),
    fl.Scheduled(fl.Adam(), lr=schedules.Exp(0.1, 0.9)),
    fl.MixedPrecision(torch.float64, fl.Adam(0.1)),
    fl.ApplyIfFinite(fl.Adam(0.1)),
]
each_rule = pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)


# carry


@each_rule
def test_after_a_new_head_the_rest_goes_on_as_if_nothing_had_happened(rule: Any) -> None:
    model, state = trained(rule, body_and_head())
    edited = fl.at(model, "['head']").set(randn(5, 3, seed=9))
    carried = fl.setup(rule, edited, carry=state)
    for t in range(3, 6):
        model, state = fl.update(state, model, {**grads_at(t, model), "head": None})
        edited, carried = fl.update(carried, edited, {**grads_at(t, edited), "head": None})
    assert all(equal(model[k], edited[k]) for k in ("body", "bias"))
    assert all(equal(state[k], carried[k]) for k in ("body", "bias"))


@each_rule
def test_a_new_head_of_another_shape_starts_fresh(rule: Any) -> None:
    model, state = trained(rule, body_and_head())
    edited = fl.at(model, "['head']").set(randn(5, 3, seed=9))
    carried = fl.setup(rule, edited, carry=state)
    assert equal(carried["head"], fl.setup(rule, edited)["head"])
    assert carried["body"].state is state["body"].state


@each_rule
def test_carrying_over_an_unchanged_model_changes_nothing(rule: Any) -> None:
    model, state = trained(rule, body_and_head())
    assert equal(fl.setup(rule, model, carry=state), state)


@pytest.mark.parametrize("taken_out", [False, True])
@each_rule
def test_a_new_head_of_the_same_shape_keeps_its_own_weights(rule: Any, taken_out: bool) -> None:
    """What the state holds of the old head (a master, a slow copy) must not take its place."""
    if not taken_out and isinstance(rule, (fl.Lookahead, fl.ScheduleFree)):
        pytest.skip("it can't tell the new head from the old one: its state must be taken out")
    model, state = trained(rule, body_and_head())
    new = torch.full((2, 3), 1000.0, dtype=torch.float64)
    edited = fl.at(model, "['head']").set(new)
    if taken_out:
        state = fl.at(state, "['head']").set(None)
    carried = fl.setup(rule, edited, carry=state)
    for t in range(3):
        edited, carried = fl.update(carried, edited, grads_at(t, edited))
    # The rate is 0.1: a few steps go nowhere near the old numbers, which are about 1.
    assert (edited["head"] > 500).all()


def test_new_hyperparameters_win() -> None:
    model, state = trained(fl.Adam(0.1), body_and_head())
    carried = fl.setup(fl.Adam(0.5, eps=1e-3), model, carry=state)
    assert carried["body"].rule == fl.Adam(0.5, eps=1e-3)
    assert equal(carried, fl.adjust(state, 0.5, eps=1e-3))


def test_frozen_parameters_stay_frozen_and_new_ones_move() -> None:
    model, state = trained(fl.Adam(0.1), body_and_head())
    state = fl.freeze(state, ("['body']", "['head']"))
    carried = fl.setup(fl.Adam(0.1), fl.at(model, "['head']").set(randn(5, 3)), carry=state)
    assert [carried[k].frozen for k in ("body", "bias", "head")] == [True, False, False]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (fl.Adam(), fl.AdamW()),
        (fl.Momentum(), fl.Lion()),
        (fl.Momentum(), fl.Nesterov()),
        (fl.Adam(), fl.EMA(fl.Adam())),
        (fl.EMA(fl.Adam()), fl.Adam()),
        (fl.RMSProp(), fl.RMSProp(momentum=0.9)),
        (CHAIN(fl.Momentum()), fl.Momentum()),
        (CHAIN(fl.WeightDecay(), fl.Momentum()), CHAIN(fl.Momentum(), fl.WeightDecay())),
        (CHAIN(fl.ClipNorm(), fl.Momentum()), CHAIN(fl.ClipNorm(), fl.Lion())),
        (fl.EMA(fl.Momentum()), fl.EMA(fl.Lion())),
        (fl.Scheduled(fl.Adam(), lr=0.1), fl.Scheduled(fl.Lamb(), lr=0.1)),
        (fl.MixedPrecision(torch.float32, fl.Adam()), fl.MixedPrecision(torch.float64, fl.Adam())),
    ],
    ids=repr,
)
def test_a_rule_of_another_kind_starts_fresh(old: Any, new: Any) -> None:
    model = {k: x.float() for k, x in body_and_head().items()}
    model, state = trained(old, model)
    with pytest.warns(UserWarning, match="no parameter whose state could be carried over"):
        carried = fl.setup(new, model, carry=state)
    assert equal(carried, fl.setup(new, model))


def test_a_parameter_of_another_dtype_starts_fresh() -> None:
    model, state = trained(fl.Adam(), body_and_head())
    edited = {**model, "head": model["head"].float()}
    carried = fl.setup(fl.Adam(), edited, carry=state)
    assert carried["body"].state is state["body"].state
    assert equal(carried["head"], fl.setup(fl.Adam(), edited)["head"])


def test_a_float32_model_cast_to_16_bits_goes_on_with_its_moments() -> None:
    model, state = trained(fl.Adam(), {k: x.float() for k, x in body_and_head().items()})
    carried = fl.setup(fl.Adam(), fl.bf16(model), carry=state)
    assert carried["body"].state is state["body"].state


def test_counters_of_what_stayed_and_what_is_new_part() -> None:
    model, state = trained(fl.Adam(0.1), body_and_head())
    edited = fl.at(model, "['head']").set(randn(5, 3, seed=9))
    carried = fl.setup(fl.Adam(0.1), edited, carry=state)
    assert [int(carried[k].state.step) for k in ("body", "bias", "head")] == [3, 3, 0]
    moved, after = fl.update(carried, edited, grads_at(5, edited))
    assert [int(after[k].state.step) for k in ("body", "bias", "head")] == [4, 4, 1]
    alone = fl.update(fl.setup(fl.Adam(0.1), edited["head"]), edited["head"], grads_at(5, edited)["head"])
    close(moved["head"], alone[0])


def test_a_place_that_moved_starts_fresh() -> None:
    model, state = trained(fl.Adam(), body_and_head())
    with pytest.warns(UserWarning, match="could be carried over"):
        fl.setup(fl.Adam(), {"renamed": model["body"]}, carry=state)


def test_a_longer_model_keeps_the_state_of_its_layers() -> None:
    model = fl.Chain(fl.Dense(3, 4), fl.Dense(4, 2))
    grads = fl.gradient(lambda m: m(torch.ones(1, 3)).sum(), model)
    model, state = fl.update(fl.setup(fl.Adam(), model), model, grads)
    longer = fl.Chain(*model.layers, fl.Dense(2, 2))
    carried = fl.setup(fl.Adam(), longer, carry=state)
    steps = [int(layer.weight.state.step) for layer in carried.layers]
    assert steps == [1, 1, 0]


def test_a_rule_by_path_carries_what_is_of_the_same_kind() -> None:
    model, state = trained(fl.Adam(), body_and_head())
    carried = fl.setup(lambda p: fl.Adam(0.5) if "b" in p else fl.Lion(), model, carry=state)
    assert carried["body"].state is state["body"].state
    assert carried["body"].rule == fl.Adam(0.5)
    assert equal(carried["head"], fl.setup(fl.Lion(), model)["head"])


def test_tied_parameters_carry_one_state() -> None:
    w = randn(3)
    model, state = trained(fl.Adam(), {"a": w, "b": w})
    carried = fl.setup(fl.Adam(), model, carry=state)
    assert carried["a"] is carried["b"]
    assert carried["a"].state is state["a"].state


def test_a_parameter_that_was_untied_moves_apart() -> None:
    w = randn(3)
    model, state = trained(fl.Adam(0.1), {"a": w, "b": w})
    apart = fl.at(model, "['b']").apply(torch.clone)
    carried = fl.setup(fl.Adam(0.1), apart, carry=state)
    for donate in (False, True):
        grads = {"a": torch.ones(3).double(), "b": -torch.ones(3).double()}
        apart, carried = fl.update(carried, apart, grads, donate=donate)
    assert not torch.equal(apart["a"], apart["b"])
    assert not torch.equal(carried["a"].state.exp_avg, carried["b"].state.exp_avg)


def test_a_parameter_that_was_tied_carries_the_state_of_its_first_place() -> None:
    model, state = trained(fl.Adam(), {"a": randn(3), "b": randn(3, seed=1)})
    tied = {"a": model["a"], "b": model["a"]}
    carried = fl.setup(fl.Adam(), tied, carry=state)
    assert carried["a"] is carried["b"]
    assert carried["a"].state is state["a"].state


@pytest.mark.parametrize("carry", [{}, {"w": torch.ones(2)}, fl.Adam(), 3, "state", [None]])
def test_something_that_is_no_state_is_refused(carry: Any) -> None:
    with pytest.raises(
        TypeError, match=r"carry holds no state of an optimiser; write setup\(rule, edited_model"
    ):
        fl.setup(fl.Adam(), body_and_head(), carry=carry)


def test_setup_with_carry_changes_neither() -> None:
    model, state = trained(fl.MixedPrecision(torch.float64, fl.Adam()), body_and_head())
    kept = fl.tree.clone((model, state))
    fl.setup(fl.MixedPrecision(torch.float64, fl.Adam()), model, carry=state)
    assert equal(kept, (model, state))


# averaged

AVERAGING: dict[str, tuple[Any, Callable[[Any, Any], Tensor]]] = {
    "EMA": (fl.EMA(fl.Adam(0.1), decay=0.5), lambda s, x: s.average),
    "Lookahead": (fl.Lookahead(fl.Adam(0.1), k=2), lambda s, x: s.slow),
    "ScheduleFree": (fl.ScheduleFree(0.1), lambda s, x: (x - 0.1 * s.z) / 0.9),
    "EMA around Lookahead": (fl.EMA(fl.Lookahead(fl.Adam(0.1), k=2), 0.5), lambda s, x: s.average),
    "Lookahead around EMA": (fl.Lookahead(fl.EMA(fl.Adam(0.1)), k=2), lambda s, x: s.slow),
    "EMA around ScheduleFree": (fl.EMA(fl.ScheduleFree(0.1), 0.5), lambda s, x: s.average),
    "in a chain": (CHAIN(fl.ClipNorm(1.0), fl.EMA(fl.Adam(0.1), 0.5)), lambda s, x: s[1].average),
    "around a chain": (fl.EMA(CHAIN(fl.ClipNorm(1.0), fl.Adam(0.1)), 0.5), lambda s, x: s.average),
    "under MixedPrecision": (
        fl.MixedPrecision(torch.float64, fl.EMA(fl.Adam(0.1), 0.5)), lambda s, x: s.inner.average,
    ),
    "ScheduleFree under MixedPrecision": (
        fl.MixedPrecision(torch.float64, fl.ScheduleFree(0.1)),
        lambda s, x: (s.master - 0.1 * s.inner.z) / 0.9,
    ),
    "under ApplyIfFinite and Scheduled": (
        fl.ApplyIfFinite(fl.Scheduled(fl.EMA(fl.Adam(), 0.5), lr=schedules.Exp(0.1, 0.5))),
        lambda s, x: s.inner.inner.average,
    ),
}  # fmt: skip
each_averaging = pytest.mark.parametrize("name", AVERAGING)


@each_averaging
def test_averaged_gives_the_average_of_the_outermost_rule_that_keeps_one(name: str) -> None:
    rule, of = AVERAGING[name]
    model, state = trained(rule, body_and_head(), 5)
    average = fl.averaged(state, model)
    for k, x in model.items():
        close(average[k], of(state[k].state, x))
        assert not torch.equal(average[k], x)


@each_averaging
def test_before_the_first_step_the_average_is_the_model(name: str) -> None:
    model = body_and_head()
    close(fl.averaged(fl.setup(AVERAGING[name][0], model), model), model)


@each_averaging
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
def test_an_average_has_the_dtype_and_shape_of_the_model(name: str, dtype: torch.dtype) -> None:
    model = {k: x.to(dtype) for k, x in body_and_head().items()}
    model, state = trained(AVERAGING[name][0], model)
    average = fl.averaged(state, model)
    for k, x in model.items():
        assert (average[k].dtype, average[k].shape) == (x.dtype, x.shape)
    wide = torch.complex128 if dtype.is_complex else torch.float64
    start = {k: x.to(dtype).to(wide) for k, x in body_and_head().items()}
    state, expected = fl.setup(AVERAGING[name][0], start), start
    for t in range(3):
        grads = {k: g.to(wide) for k, g in grads_at(t, model).items()}
        expected, state = fl.update(state, expected, grads)
    expected = fl.averaged(state, expected)
    for k in model:
        assert_close(average[k].to(wide), expected[k], rtol=0.05, atol=0.05)


@each_averaging
def test_averages_and_arguments_are_not_changed(name: str) -> None:
    model, state = trained(AVERAGING[name][0], body_and_head())
    kept = fl.tree.clone((model, state))
    fl.averaged(state, model)
    assert equal(kept, (model, state))


@each_averaging
def test_the_average_of_a_module_carries_no_graph(name: str) -> None:
    model = dict(torch.nn.Linear(3, 2).named_parameters())
    state = fl.setup(AVERAGING[name][0], model)
    for _ in range(2):
        average = fl.averaged(state, model)
        assert not any(x.requires_grad for x in average.values())
        model, state = fl.update(state, model, {k: torch.ones_like(x.detach()) for k, x in model.items()})


def test_an_average_has_the_ties_of_the_model() -> None:
    w = randn(3)
    model, state = trained(fl.EMA(fl.Adam(0.1)), {"a": w, "b": w})
    for rule in (fl.EMA(fl.Adam(0.1)), fl.ScheduleFree(0.1), fl.Lookahead(fl.Adam(0.1))):
        model, state = trained(rule, {"a": w, "b": w})
        average = fl.averaged(state, model)
        assert average["a"] is average["b"]


def test_buffers_constants_and_parameters_without_an_average_are_those_of_the_model() -> None:
    model = fl.Chain(fl.Dense(2, 2, fl.relu), fl.BatchNorm(2))
    state = fl.setup(lambda p: fl.EMA(fl.Adam()) if "layers[0]" in p else fl.Adam(), model)
    grads = fl.gradient(lambda m: m(randn(4, 2, dtype=torch.float32)).square().sum(), model)
    model, state = fl.update(state, model, grads)
    average = fl.averaged(state, model)
    assert type(average) is fl.Chain
    assert average.layers[0].weight is not model.layers[0].weight
    assert average.layers[0].activation is fl.relu
    for name in ("weight", "bias", "running_mean", "running_var"):
        assert getattr(average.layers[1], name) is getattr(model.layers[1], name)


def test_rules_by_path_give_each_their_own_average() -> None:
    rules = {"body": fl.EMA(fl.Adam(0.1)), "bias": fl.ScheduleFree(0.1), "head": fl.Lookahead(fl.Adam(0.1))}
    model, state = trained(lambda p: rules[p[2:-2]], body_and_head())
    average = fl.averaged(state, model)
    for k, rule in rules.items():
        alone = fl.averaged(fl.setup(rule, {k: model[k]}) | {k: state[k]}, {k: model[k]})
        assert torch.equal(average[k], alone[k])


def test_an_average_can_be_trained_on_and_saved_apart() -> None:
    model, state = trained(fl.EMA(fl.Adam(0.1)), body_and_head())
    average = fl.averaged(state, model)
    moved, _ = fl.update(fl.setup(fl.Descent(0.1), average), average, grads_at(9, average))
    assert not equal(moved, average)
    assert equal(average, fl.averaged(state, model))


def test_frozen_parameters_have_an_average_too() -> None:
    model = body_and_head()
    state = fl.freeze(fl.setup(fl.EMA(fl.Adam()), model), "['head']")
    model, state = fl.update(state, model, grads_at(0, model))
    assert torch.equal(fl.averaged(state, model)["head"], model["head"])


def test_without_an_average_the_rules_that_there_are_are_named() -> None:
    model = body_and_head()
    state = fl.setup(lambda p: fl.Adam() if "b" in p else fl.Lion(), model)
    with pytest.raises(ValueError, match=r"no rule of the state keeps an average \(Adam, Lion\); wrap it"):
        fl.averaged(state, model)


def test_swapped_arguments_show_the_right_line() -> None:
    model, state = trained(fl.EMA(fl.Adam()), body_and_head())
    with pytest.raises(TypeError, match=r"swapped: write averaged\(state, model\)"):
        fl.averaged(model, state)


def test_the_average_of_another_model_names_the_difference() -> None:
    _, state = trained(fl.EMA(fl.Adam()), body_and_head())
    with pytest.raises(ValueError, match="state and the model differ in structure"):
        fl.averaged(state, {"body": randn(3, 3)})


def test_an_average_of_another_shape_than_the_model_is_an_error() -> None:
    model, state = trained(fl.EMA(fl.Adam()), body_and_head())
    with pytest.raises(ValueError, match=r"\['head'\]"):
        fl.averaged(state, {**model, "head": randn(5, 3)})


# adjust: any hyperparameter of any rule

OTHER: dict[str, Any] = {
    "lr": 0.05, "momentum": 0.5, "betas": (0.5, 0.6), "eps": 1e-3, "weight_decay": 0.3, "couple": False,
    "decoupled_weight_decay": True, "momentum_decay": 0.1, "alpha": 0.5, "rho": 0.5, "lr_decay": 0.5,
    "initial_accumulator_value": 0.5, "centered": True, "etas": (0.4, 1.3), "step_sizes": (1e-3, 0.05),
    "beta2_decay": -0.5, "d": 2.0, "nesterov": False, "ns_coefficients": (3.0, -4.0, 2.0), "ns_steps": 3,
    "adjust_lr_fn": "match_rms_adamw", "warmup_steps": 5, "r": 1.0, "weight_lr_power": 1.0, "delta": 0.2,
    "max_norm": 0.2, "p": 1.0, "throw": False, "n": 3, "decay": 0.2, "k": 3,
}  # fmt: skip
OWN = {("Adafactor", "eps"): (1e-3, 1e-2), ("Rprop", "lr"): 0.2}
WRONG: dict[str, Any] = {
    "lr": -1.0, "momentum": 1.5, "betas": (0.5, 1.5), "eps": -1.0, "weight_decay": -1.0,
    "momentum_decay": -1.0, "alpha": -1.0, "rho": 1.5, "lr_decay": -1.0, "initial_accumulator_value": -1.0,
    "etas": (1.1, 1.2),
    "beta2_decay": 0.5, "d": 0.5, "adjust_lr_fn": "none", "warmup_steps": -1, "r": -1.0,
    "weight_lr_power": -1.0, "delta": -1.0, "max_norm": -1.0, "n": 0, "decay": 1.0, "k": 0,
}  # fmt: skip
KINDS = [
    fl.Descent, fl.Momentum, fl.Nesterov, fl.Rprop, fl.RMSProp, fl.Adam, fl.AdamW, fl.AdaMax, fl.OAdam,
    fl.AdaGrad, fl.AdaDelta, fl.AMSGrad, fl.NAdam, fl.RAdam, fl.AdaBelief, fl.Lion, fl.Lamb, fl.Adafactor,
    fl.Muon, fl.ScheduleFree, fl.WeightDecay, fl.SignDecay, fl.ClipGrad, fl.ClipNorm, fl.ClipGlobalNorm,
]  # fmt: skip
FIELDS = [(cls, field.name) for cls in KINDS for field in dataclasses.fields(cls) if field.name != "rest"]
AT_SETUP = {("Rprop", "lr"), ("AdaGrad", "initial_accumulator_value"), ("RMSProp", "centered")}
OF_THE_REST = {("Muon", name) for name in ("lr", "weight_decay", "eps")}
IN_A_RUN = [(cls, name) for cls, name in FIELDS if (cls.__name__, name) not in AT_SETUP | OF_THE_REST]
CHECKED = [(cls, name) for cls, name in FIELDS if name in WRONG]


def named(v: Any) -> str:
    return getattr(v, "__name__", v)


@pytest.mark.parametrize(("cls", "name"), FIELDS, ids=named)
def test_an_adjusted_rule_is_the_rule_constructed_with_the_value(cls: Any, name: str) -> None:
    value = OWN.get((cls.__name__, name), OTHER[name])
    state = fl.adjust(fl.setup(cls(), body_and_head()), **{name: value})
    expected = cls(**{name: value})
    if (cls.__name__, name) in OF_THE_REST:  # they are of the rule for the rest, too
        expected = fl.Muon(**{name: value}, rest=fl.AdamW(**{name: value}))
    assert {entry.rule for entry in state.values()} == {expected}
    assert hash(state["body"].rule) == hash(expected)


@pytest.mark.parametrize(("cls", "name"), IN_A_RUN, ids=named)
def test_an_adjusted_run_moves_as_by_the_rule_constructed_with_the_value(cls: Any, name: str) -> None:
    value = OWN.get((cls.__name__, name), OTHER[name])
    with_velocity = {"momentum": 0.9} if (cls, name) == (fl.RMSProp, "momentum") else {}
    model, state = trained(cls(**with_velocity), body_and_head())
    expected = fl.setup(cls(**{name: value}), model, carry=state)
    adjusted = fl.adjust(state, **{name: value})
    grads = grads_at(7, model)
    assert equal(fl.update(adjusted, model, grads)[0], fl.update(expected, model, grads)[0])


@pytest.mark.parametrize(("cls", "name"), CHECKED, ids=named)
def test_a_wrong_value_is_refused_as_by_the_constructor(cls: Any, name: str) -> None:
    wrong = {("Adafactor", "eps"): (-1.0, 1.0)}.get((cls.__name__, name), WRONG[name])
    state = fl.setup(cls(), body_and_head())
    with pytest.raises(ValueError) as constructed:
        cls(**{name: wrong})
    with pytest.raises(ValueError) as adjusted:
        fl.adjust(state, **{name: wrong})
    assert str(adjusted.value) == str(constructed.value)


@pytest.mark.parametrize("rule", [fl.Momentum, fl.Nesterov])
def test_a_momentum_of_zero_is_plain_descent(rule: Any) -> None:
    model = body_and_head()
    expected = trained(fl.Descent(0.1), model)[0]
    close(trained(rule(0.1, 0.0), model)[0], expected)
    for donate in (False, True):
        model = body_and_head()
        state = fl.adjust(fl.setup(rule(0.1), model), momentum=0.0)
        for t in range(3):
            model, state = fl.update(state, model, grads_at(t, model), donate=donate)
        close(model, expected)


@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
def test_a_hyperparameter_may_be_adjusted_to_a_tensor(name: str) -> None:
    value = torch.tensor(OTHER[name], dtype=torch.float64)
    model, state = trained(fl.Adam(0.1), body_and_head())
    number, tensor = (fl.adjust(state, **{name: v}) for v in (OTHER[name], value))
    grads = grads_at(7, model)
    close(fl.update(tensor, model, grads)[0], fl.update(number, model, grads)[0])


INSIDE = [
    lambda r: CHAIN(fl.ClipNorm(1.0), r),
    lambda r: fl.EMA(r, decay=0.5),
    lambda r: fl.Lookahead(r, k=2),
    lambda r: fl.Scheduled(r, eps=1e-3),
    lambda r: fl.MixedPrecision(torch.float64, r),
    fl.ApplyIfFinite,
    lambda r: fl.EMA(CHAIN(fl.AccumGrad(1), fl.ApplyIfFinite(fl.Lookahead(r, k=2))), decay=0.5),
]
inside = pytest.mark.parametrize("wrap", INSIDE, ids=lambda w: type(w(fl.Adam())).__name__)


@inside
@pytest.mark.parametrize(("name", "value"), [("lr", 0.05), ("betas", (0.5, 0.6)), ("weight_decay", 0.3)])
def test_a_hyperparameter_of_the_rule_inside_is_adjusted(wrap: Any, name: str, value: Any) -> None:
    model, state = trained(wrap(fl.Adam(0.1)), body_and_head())
    adjusted = fl.adjust(state, **{name: value})
    new = wrap(fl.Adam(**{"lr": 0.1, name: value}))
    assert adjusted["body"].rule == new
    assert equal(adjusted, fl.setup(new, model, carry=state))
    grads = grads_at(7, model)
    assert equal(
        fl.update(adjusted, model, grads)[0],
        fl.update(fl.setup(new, model, carry=state), model, grads)[0],
    )


@inside
def test_a_wrong_value_for_the_rule_inside_is_refused(wrap: Any) -> None:
    with pytest.raises(ValueError, match=r"lr=-1\.0: write a number of at least 0"):
        fl.adjust(fl.setup(wrap(fl.Adam()), body_and_head()), -1.0)


@pytest.mark.parametrize(
    ("rule", "name"),
    [
        (fl.EMA(fl.Adam()), "decay"),
        (fl.Lookahead(fl.Adam()), "k"),
        (fl.Lookahead(fl.Adam()), "alpha"),
        (CHAIN(fl.AccumGrad(2), fl.Adam()), "n"),
        (CHAIN(fl.ClipNorm(1.0), fl.Adam()), "max_norm"),
    ],
    ids=["decay", "k", "alpha", "n", "max_norm"],
)
def test_hyperparameters_of_wrappers_and_links_are_adjusted_and_checked(rule: Any, name: str) -> None:
    model, state = trained(rule, body_and_head())
    adjusted = fl.adjust(state, **{name: OTHER[name]})
    wrapper = adjusted["body"].rule
    wrapper = wrapper.rules[0] if isinstance(wrapper, CHAIN) else wrapper
    assert getattr(wrapper, name) == OTHER[name]
    fl.update(adjusted, model, grads_at(7, model))
    with pytest.raises(ValueError, match=f"{name}=.*: write a"):
        fl.adjust(state, **{name: WRONG[name]})


@pytest.mark.parametrize("name", ["rule", "rules", "rest", "schedules", "state", "frozen"])
def test_the_structure_of_wrappers_is_no_hyperparameter(name: str) -> None:
    for rule in (fl.EMA(fl.Adam()), CHAIN(fl.Adam()), fl.Muon(), fl.Scheduled(fl.Adam(), lr=0.1)):
        with pytest.raises(ValueError, match=f"no rule there has a hyperparameter '{name}'"):
            fl.adjust(fl.setup(rule, body_and_head()), **{name: fl.Lion()})


def test_adjusting_does_not_reach_the_state_given_or_its_copies() -> None:
    rule = fl.EMA(CHAIN(fl.ClipNorm(1.0), fl.Adam(0.1)))
    state = fl.setup(rule, body_and_head())
    kept = copy.deepcopy(rule)
    fl.adjust(state, 0.5, max_norm=3.0, decay=0.1)
    assert rule == kept
    assert state["body"].rule is rule


# freeze and thaw under wrappers


@each_rule
def test_a_frozen_parameter_rests_while_the_others_go_on(rule: Any) -> None:
    model, state = trained(rule, body_and_head())
    frozen = fl.freeze(state, "['head']")
    moved, after = model, frozen
    for t in range(3, 6):
        moved, after = fl.update(after, moved, grads_at(t, moved))
    assert moved["head"] is model["head"]
    assert after["head"] is frozen["head"]
    rest, rest_state = {k: model[k] for k in ("body", "bias")}, {k: state[k] for k in ("body", "bias")}
    for t in range(3, 6):
        rest, rest_state = fl.update(rest_state, rest, {k: grads_at(t, model)[k] for k in rest})
    close({k: moved[k] for k in rest}, rest)


@each_rule
def test_a_thawed_parameter_goes_on_where_it_rested(rule: Any) -> None:
    model, state = trained(rule, body_and_head())
    resting, resting_state = model, fl.freeze(state, "['head']")
    for t in range(3, 5):
        resting, resting_state = fl.update(resting_state, resting, grads_at(t, resting))
    resting_state = fl.thaw(resting_state, "['head']")
    grads = grads_at(7, model)
    moved, after = fl.update(resting_state, resting, grads)
    head, head_state = fl.update({"head": state["head"]}, {"head": model["head"]}, {"head": grads["head"]})
    close(moved["head"], head["head"])
    close(after["head"], head_state["head"])


@each_rule
def test_freezing_and_thawing_between_steps_changes_nothing(rule: Any) -> None:
    model, state = trained(rule, body_and_head())
    grads = grads_at(7, model)
    assert equal(fl.update(state, model, grads), fl.update(fl.thaw(fl.freeze(state)), model, grads))
