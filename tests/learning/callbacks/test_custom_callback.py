"""`CustomCallback`, `ConditionalCallback` and `throttle`: who is called, when, and what is remembered."""

from __future__ import annotations

import pickle
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.callbacks import conditional
from fluxlike.learning.callbacks.conditional import ConditionalCallback, throttle
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.nonfinite import StopOnNonFiniteLoss
from fluxlike.learning.events import Event
from fluxlike.learning.order import ordered

DATA = [(torch.ones(2, 1), torch.zeros(2, 1))] * 3


def learner(*callbacks, data=(DATA, DATA)):
    return fl.Learner(
        fl.Dense(1, 1), data, fl.Descent(0.1), fl.losses.mse, callbacks=callbacks, defaults=False
    )  # fmt: skip


def counting(event="step_end", **options):
    """A callback that counts its calls in what it remembers."""

    def count(run):
        run.memory["calls"] = [*run.memory.get("calls", []), (run.phase, run.step)]

    return CustomCallback(event, count, **options)


def any_time(run):
    return True


class Two(fl.Callback):
    """Listens to two events, and remembers in a form of its own."""

    reads = ("out",)
    writes = ("metrics",)
    after = (StopOnNonFiniteLoss,)

    def init(self):
        return {"steps": 0, "epochs": 0}

    def step_end(self, run):
        run.memory["steps"] += 1

    def epoch_end(self, run):
        run.memory["epochs"] += 1

    def save(self, run):
        return {**run.memory, "saved": run.live.get("x", 0)}


# CustomCallback


@pytest.mark.parametrize("event", [e for e in Event if e is not Event.EXCEPTION], ids=lambda e: e.value)
def test_the_function_is_called_at_its_event_and_no_other(event):
    times = {
        "fit_begin": 1,
        "fit_end": 1,
        "epoch_begin": 2,
        "epoch_end": 2,
        "backward_begin": 3,
        "backward_end": 3,
    }
    for name in (event, event.value):
        seen = []
        fl.fit(learner(CustomCallback(name, seen.append)), 1)
        assert len(seen) == times.get(event.value, 6)


def test_it_is_called_when_the_fit_fails():
    def fail(run):
        raise ZeroDivisionError

    seen = []
    with pytest.raises(fl.CallbackError):
        fl.fit(
            learner(
                CustomCallback("step_end", fail), CustomCallback("exception", lambda r: seen.append(r.step))
            ),
            1,
        )
    assert seen == [1]


def test_it_keeps_to_its_phase():
    found = fl.fit(learner(counting(phase="validation")), 1)
    assert found.memory["CustomCallback"]["calls"] == [("validation", 3)] * 3


def test_what_it_does_not_declare_it_can_not_read():
    with pytest.raises(fl.CallbackError, match=r"reads run\.model but does not say so"):
        fl.fit(learner(CustomCallback("step_end", lambda run: run.model)), 1)
    fl.fit(learner(CustomCallback("step_end", lambda run: run.model, reads=("model",))), 1)


def test_what_it_declares_orders_it():
    writer = CustomCallback("step_end", lambda run: None, writes=("out",))
    reader = CustomCallback("step_end", lambda run: None, reads=("out",))
    assert ordered([reader, writer])[Event.STEP_END] == [1, 0]
    with pytest.raises(ValueError, match="both write 'out' at step_end"):
        learner(writer, writer)


@pytest.mark.parametrize(
    ("event", "f", "phase", "error", "message"),
    [
        ("on_step_end", print, None, ValueError, "'on_step_end'; the events are fit_begin"),
        ("step_end", None, None, TypeError, "a function of the run, found None"),
        ("step_end", StopOnNonFiniteLoss, None, TypeError, "a function of the run, found <class"),
        ("fit_end", print, "training", ValueError, "fit_end belongs to no phase"),
    ],
)
def test_wrong_settings_are_errors(event, f, phase, error, message):
    with pytest.raises(error, match=message):
        CustomCallback(event, f, phase)


def test_it_can_be_pickled():
    assert pickle.loads(pickle.dumps(throttle(CustomCallback("step_end", print), every=2))).every == 2


# ConditionalCallback


def test_a_condition_is_asked_at_each_event_of_the_callback():
    found = fl.fit(learner(ConditionalCallback(Two(), lambda run: run.phase == "training")), 2)
    assert found.memory == {"Two": {"steps": 6, "epochs": 2, "saved": 0}}


@pytest.mark.parametrize(
    "around",
    [lambda c: ConditionalCallback(c, any_time), lambda c: throttle(c, every=2)],
    ids=["conditional", "throttle"],
)
def test_declarations_are_those_of_the_callback_inside(around):
    found = around(Two())
    assert (found.reads, found.writes, found.name) == (("out",), ("metrics",), "Two")
    assert [e.value for e in Event if hasattr(found, e.value)] == ["step_end", "epoch_end"]
    assert ordered([found, StopOnNonFiniteLoss()])[Event.STEP_END] == [1, 0]
    assert ordered([Two(), around(StopOnNonFiniteLoss())])[Event.STEP_END] == [1, 0]


def test_wrong_callbacks_and_conditions_are_errors():
    with pytest.raises(TypeError, match="around a callback, found <class"):
        ConditionalCallback(Two, any_time)
    with pytest.raises(TypeError, match="the condition is True"):
        ConditionalCallback(Two(), True)


def test_a_condition_sees_what_the_callback_sees():
    with pytest.raises(fl.CallbackError, match=r"Two reads run\.model but does not say so"):
        fl.fit(learner(ConditionalCallback(Two(), lambda run: run.model)), 1)


# throttle


def test_every_n_th_event_of_each_phase_gets_through():
    found = fl.fit(learner(throttle(counting(), every=2)), 2)
    inside = found.memory["CustomCallback"]["inside"]
    expected = [("training", 2), ("training", 4), ("training", 6)]
    assert [c for c in inside["calls"] if c[0] == "training"] == expected
    assert len(inside["calls"]) == 6


def test_other_events_of_the_callback_come_as_ever():
    found = fl.fit(learner(throttle(Two(), "epoch_end", every=3)), 3)
    assert found.memory["Two"]["inside"] == {"steps": 18, "epochs": 2, "saved": 0}


def test_seconds_count_from_call_to_call():
    clock = iter([0.0, 1.0, 2.0, 10.0, 11.0, 19.0, 20.0])
    with patch.object(conditional, "monotonic", lambda: next(clock)):
        found = fl.fit(learner(throttle(counting(), seconds=9), data=[*DATA, *DATA]), 1)
    calls = found.memory["CustomCallback"]["inside"]["calls"]
    assert calls == [("training", 3), ("training", 5)]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 4), st.integers(1, 8))
def test_a_run_that_was_left_anywhere_counts_on(every, step):
    def leave(run):
        if run.step == step and run.phase == "training":
            raise fl.CancelFit("left")

    whole = fl.fit(learner(throttle(Two(), every=every)), 3)
    left = fl.fit(learner(throttle(Two(), every=every), CustomCallback("step_end", leave)), 3)
    assert left.stopped == "left"
    assert fl.fit(left, 3 - left.epoch).memory["Two"] == whole.memory["Two"]


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((Two(),), {}, TypeError, "one of every= and seconds="),
        ((Two(),), {"every": 1, "seconds": 1}, TypeError, "one of every= and seconds="),
        ((Two(),), {"every": 0}, ValueError, "every=0"),
        ((Two(),), {"seconds": -1}, ValueError, "seconds=-1"),
        (
            (Two(), "step_begin"),
            {"every": 2},
            ValueError,
            "Two does not listen to step_begin; .* step_end, epoch_end",
        ),
        ((Two(), "step"), {"every": 2}, ValueError, "the event 'step'"),
        ((print,), {"every": 2}, TypeError, "around a callback, found <built-in"),
    ],
)
def test_wrong_arguments_of_throttle_are_errors(arguments, options, error, message):
    with pytest.raises(error, match=message):
        throttle(*arguments, **options)


def test_callbacks_around_callbacks_around_callbacks_remember():
    both = throttle(ConditionalCallback(throttle(counting(), every=2), lambda run: run.epoch > 1), every=1)
    found = fl.fit(learner(both, data=DATA), 3)
    calls = found.memory["CustomCallback"]["inside"]["inside"]["calls"]
    assert calls == [("training", 5), ("training", 7), ("training", 9)]
