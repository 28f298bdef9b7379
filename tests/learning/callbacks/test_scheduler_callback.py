"""`Scheduler`: any hyperparameter, at any place, by any function of the step."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.callbacks.conditional import ConditionalCallback, throttle
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.callbacks.to_device import ToDevice
from fluxlike.optimisers import lane

X, Y = torch.randn(12, 3), torch.randn(12, 2)


def network():
    torch.manual_seed(0)
    return fl.Chain(fl.Dense(3, 4, fl.relu), fl.Dense(4, 2))


def learner(*callbacks, rule=None, batches=4, **options):
    torch.manual_seed(1)
    data = fl.DataLoader((X, Y), batch_size=-(-12 // batches), shuffle=True)
    rule = fl.AdamW(0.5) if rule is None else rule
    return fl.Learner(
        network(), data, rule, fl.losses.mse, callbacks=callbacks, defaults=False, **options
    )  # fmt: skip


class Rules(fl.Callback):
    """Writes down the rules that the steps are taken with."""

    reads = ("state",)

    def __init__(self, where=lambda s: s.layers[0].weight):
        self.where, self.seen = where, []

    def step_end(self, run):
        self.seen.append(fl.at(run.state, self.where).get().rule)


def seen(*callbacks, epochs=1, where=lambda s: s.layers[0].weight, **options):
    rules = Rules(where)
    fl.fit(learner(*callbacks, rules, **options), epochs)
    return rules.seen


def same(a, b):
    return fl.tree.allclose((a.model, a.state), (b.model, b.state), rtol=0, atol=0)


# What is set


def test_each_step_of_training_has_the_value_of_the_schedule_from_zero_on():
    schedule = fl.schedules.Cosine(0.1, 0.0, 8)
    assert [rule.lr for rule in seen(Scheduler(lr=schedule), epochs=3)] == [schedule(t) for t in range(12)]


def test_any_hyperparameter_follows_any_function_of_the_step():
    betas = lambda step: (0.8 + step / 100, 0.9)  # noqa: E731
    rules = seen(Scheduler(betas=betas, weight_decay=lambda step: 1 / (step + 1), eps=lambda step: 1e-3))
    assert [rule.betas for rule in rules] == [(0.8 + t / 100, 0.9) for t in range(4)]
    assert [rule.weight_decay for rule in rules] == [1, 1 / 2, 1 / 3, 1 / 4]
    assert {rule.eps for rule in rules} == {1e-3}
    assert {rule.lr for rule in rules} == {0.5}


def test_a_pair_may_be_of_schedules_and_numbers():
    rules = seen(Scheduler(betas=(fl.schedules.Exp(0.8, 0.5), 0.99)))
    assert [rule.betas for rule in rules] == [(0.8, 0.99), (0.4, 0.99), (0.2, 0.99), (0.1, 0.99)]


def test_the_links_of_a_chain_are_scheduled_too():
    rule = fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Momentum(0.1))
    rules = seen(Scheduler(max_norm=lambda step: step + 1, momentum=lambda step: 0.5), rule=rule)
    assert rules[-1] == fl.OptimiserChain(fl.ClipGlobalNorm(4.0), fl.Momentum(0.1, 0.5))


@pytest.mark.parametrize("value", [torch.tensor(0.25), np.float32(0.25), np.array(0.25)])
def test_a_value_of_one_number_becomes_a_float(value):
    assert {type(rule.lr) for rule in seen(Scheduler(lr=lambda step: value))} == {float}


def test_a_run_with_a_scheduler_is_the_run_of_a_scheduled_rule():
    schedule = fl.schedules.Triangle(0.01, 0.1, 5)
    ours = fl.fit(learner(Scheduler(lr=schedule), rule=fl.Momentum()), 3)
    other = fl.fit(learner(rule=fl.Scheduled(fl.Momentum(), lr=schedule)), 3)
    assert fl.tree.allclose(ours.model, other.model)


def test_validation_moves_no_schedule():
    rules = Rules()
    given_ = learner(Scheduler(lr=lambda step: step + 1.0), rules)
    data = {"training": given_.data["training"], "validation": given_.data["training"]}
    both = fl.Learner(
        given_.model, data, fl.Adam(), fl.losses.mse, callbacks=given_.callbacks, defaults=False
    )
    fl.fit(both, 2)
    assert [rule.lr for rule in rules.seen] == [1, 2, 3, 4, 4, 4, 4, 4, 5, 6, 7, 8, 8, 8, 8, 8]


def test_before_its_start_a_scheduler_sets_nothing():
    rules = seen(Scheduler(start=2, lr=lambda step: 10.0 + step))
    assert [rule.lr for rule in rules] == [0.5, 0.5, 10.0, 11.0]


def test_a_scheduler_of_a_later_fit_counts_from_that():
    first = fl.fit(learner(), 1)
    again = fl.fit(first.replace(callbacks=(Scheduler(lr=lambda step: 1.0 + step),)), 1)
    assert again.memory["Scheduler"] == {"start": 4, "values": {"lr": 4.0}}


def test_a_state_that_was_adjusted_between_fits_is_set_again():
    rules = Rules()
    found = fl.fit(learner(Scheduler(lr=fl.schedules.Constant(0.25)), rules), 1)
    fl.fit(found.replace(state=fl.adjust(found.state, 7.0)), 1)
    assert {rule.lr for rule in rules.seen} == {0.25}


def test_the_values_are_there_for_others():
    told = []
    show = CustomCallback("step_end", lambda run: told.append(dict(run.hyperparameters)))
    first = Scheduler(where=lambda s: s.layers[0], lr=lambda step: 0.1)
    others = Scheduler(momentum=lambda step: step / 10), Scheduler(".layers[1].bias", lr=lambda step: 0.2)
    found = fl.fit(learner(first, *others, show, rule=fl.Momentum()), 1)
    assert told[-1] == {"lr.layers[0]": 0.1, "momentum": 0.3, "lr.layers[1].bias": 0.2}
    assert found.memory["Scheduler 2"] == {"start": 0, "values": {"momentum": 0.3}}


# Places


@pytest.mark.parametrize(
    "where", [".layers[1]", lambda s: s.layers[1], (".layers[1].weight", ".layers[1].bias")]
)
def test_a_place_has_its_own_schedule(where):
    schedule = Scheduler(where=where, lr=lambda step: 0.1 * step)
    assert {rule.lr for rule in seen(schedule)} == {0.5}
    rules = seen(schedule, where=lambda s: s.layers[1].bias)
    assert [rule.lr for rule in rules] == [0.1 * t for t in range(4)]


def test_a_model_of_several_can_be_the_place():
    class Both(fl.Step):
        def loss(self, models, batch):
            return {"loss": fl.losses.mse(models["b"](models["a"](batch[0])), batch[1])}

    models = {"a": fl.Dense(3, 4), "b": fl.Dense(4, 2)}
    both = fl.Learner(
        models, [(X, Y)], {"a": fl.Adam(), "b": fl.Descent(0.1)}, step=Both(), defaults=False,
        callbacks=[Scheduler(where=lambda s: s["a"], betas=lambda step: (0.5, 0.6))],
    )  # fmt: skip
    state = fl.fit(both, 1).state
    assert (state["a"].weight.rule, state["b"].weight.rule) == (fl.Adam(betas=(0.5, 0.6)), fl.Descent(0.1))


def test_schedulers_of_different_hyperparameters_or_places_go_together():
    learner(
        Scheduler(lr=fl.schedules.Constant(0.1)),
        Scheduler(weight_decay=fl.schedules.Constant(0.1)),
        Scheduler(where=".layers[0]", eps=fl.schedules.Constant(0.1)),
        Scheduler(where=".layers[1]", eps=fl.schedules.Constant(0.1)),
        ToDevice("cpu"),
    )


def test_two_schedulers_of_one_hyperparameter_are_reported_with_the_learner():
    with pytest.raises(ValueError, match=r"Scheduler and Scheduler 2 both write 'state.lr"):
        learner(Scheduler(lr=lambda step: 0.1), Scheduler(where=lambda s: s.layers[0], lr=lambda step: 0.1))


@pytest.mark.parametrize("around", [lambda c: c, lambda c: ConditionalCallback(c, lambda run: True)])
def test_places_that_overlap_are_reported_by_the_first_step(around):
    two = [Scheduler(where=w, lr=lambda step: 0.1) for w in (".layers[0]", lambda s: s.layers[0].bias)]
    with pytest.raises(fl.CallbackError, match="both set 'lr' of the same parameters"):
        fl.fit(learner(two[0], around(two[1])), 1)


# Errors


def test_a_name_that_no_rule_has_is_an_error_that_lists_the_names():
    with pytest.raises(fl.CallbackError, match="hyperparameter 'momentum'; they have betas, couple"):
        fl.fit(learner(Scheduler(momentum=lambda step: 0.9)), 1)


def test_a_value_that_the_rule_refuses_is_an_error_that_names_the_step():
    with pytest.raises(fl.CallbackError, match=r"lr=-1.0: write a number .*after step 2, epoch 1"):
        fl.fit(learner(Scheduler(lr=lambda step: 1.0 - step)), 1)


@pytest.mark.parametrize("schedule", [0.1, "cosine", None, fl.schedules.Cosine, ()])
def test_a_schedule_that_is_no_function_is_an_error(schedule):
    with pytest.raises(TypeError, match="is no function of the step; write"):
        Scheduler(lr=schedule)


def test_no_schedule_and_no_such_start_are_errors():
    with pytest.raises(TypeError, match="no schedule"):
        Scheduler()
    with pytest.raises(ValueError, match="start=-1"):
        Scheduler(start=-1, lr=lambda step: 0.1)


def test_it_prints_as_it_is_written():
    assert repr(Scheduler(".a", 5, lr=fl.schedules.Exp(0.1, 0.5))) == (
        "Scheduler(where='.a', start=5, lr=Exp(start=0.1, decay=0.5))"
    )


# Resuming


@settings(max_examples=12, deadline=None)
@given(st.integers(1, 11), st.sampled_from([None, 0, 3]), st.sampled_from([None, ".layers[1]"]))
def test_a_run_that_was_left_anywhere_goes_on_to_the_same_bits(step, start, where):
    def leave(run):
        if run.step == step and "left" not in run.memory:
            run.memory["left"] = True
            raise fl.CancelFit("left")

    schedule = Scheduler(
        where, start, lr=fl.schedules.Cosine(0.1, 0.01, 9), betas=lambda t: (0.9 - t / 50, 0.9)
    )
    whole = fl.fit(learner(schedule), 3)
    left = fl.fit(learner(schedule, CustomCallback("step_end", leave)), 3)
    assert left.step == step
    assert same(fl.fit(left, 3 - left.epoch), whole)


def test_epoch_by_epoch_is_all_at_once():
    schedule = Scheduler(lr=fl.schedules.OneCycle(12, 0.1))
    parts = learner(schedule)
    for _ in range(3):
        parts = fl.fit(parts, 1)
    assert same(parts, fl.fit(learner(schedule), 3))


# Speed


def test_a_compiled_step_is_traced_once_whatever_is_scheduled():
    schedules = (
        Scheduler(lr=lambda step: step, betas=(fl.schedules.Exp(0.9, 0.9), 0.99)),
        Scheduler(where=lambda s: s.layers[0], weight_decay=fl.schedules.Cosine(0.1, 0.05, 5)),
    )
    found = fl.fit(learner(*schedules, jit=True), 3)
    traces = [f.cache_info().traces for f in found._shared["functions"].values() if f.cache_info().calls]
    assert traces == [1]


def test_a_compiled_run_has_the_numbers_of_an_eager_one():
    schedule = Scheduler(lr=fl.schedules.Cosine(0.1, 0.01, 9))
    eager, compiled = fl.fit(learner(schedule), 2), fl.fit(learner(schedule, jit=True), 2)
    assert fl.tree.allclose(eager.model, compiled.model, rtol=1e-4, atol=1e-5)


def test_a_scheduled_run_keeps_the_fast_lane():
    taken, step = [], lane.Lane.step

    def spy(this, *args):
        result = step(this, *args)
        taken.append(result is not None)
        return result

    with patch.object(lane.Lane, "step", spy):
        fl.fit(learner(Scheduler(lr=fl.schedules.Cosine(0.1, 0.0, 8))), 2)
    assert taken == [True] * 7


def test_a_throttled_scheduler_holds_the_value_between():
    slow = throttle(Scheduler(lr=lambda step: 1.0 + step), "step_begin", every=2)
    assert [rule.lr for rule in seen(slow)] == [0.5, 1.0, 1.0, 3.0]
