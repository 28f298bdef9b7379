"""`Profiler` and `Traces`: where the time of a run goes."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.callbacks import profiler as module
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.profiler import DeviceClock, Profiler, time_report
from fluxlike.learning.callbacks.traces import Traces

BATCH = (torch.ones(2, 1), torch.zeros(2, 1))


class Clock:
    """Time that passes only where a test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Slow:
    """Batches that take a while each."""

    def __init__(self, clock, seconds, batches=4):
        self.clock, self.seconds, self.batches = clock, seconds, batches

    def __len__(self):
        return self.batches

    def epoch(self, number, start=0):
        for _ in range(start, self.batches):
            self.clock.now += self.seconds
            yield BATCH


class Costly(fl.Callback):
    """A callback that takes a while at some events."""

    def __init__(self, clock, seconds):
        self.clock, self.seconds = clock, seconds

    def epoch_begin(self, run):
        self.clock.now += self.seconds

    step_begin = step_end = epoch_end = epoch_begin


def learner(*callbacks, data=None, clock=None, step_seconds=0.0, **options):
    def loss(outputs, targets):
        if clock is not None:
            clock.now += step_seconds
        return fl.losses.mse(outputs, targets)

    data = [BATCH] * 4 if data is None else data
    return fl.Learner(
        fl.Dense(1, 1), data, fl.Descent(0.1), loss, callbacks=callbacks, defaults=False, **options
    )  # fmt: skip


@pytest.fixture
def clock():
    clock = Clock()
    with patch.object(module, "perf_counter", clock), patch("fluxlike.learning.fit.perf_counter", clock):
        yield clock


def test_time_is_told_apart_to_data_steps_and_callbacks(clock, capsys):
    found = learner(
        Costly(clock, 1.0),
        Profiler(),
        clock=clock,
        step_seconds=16.0,
        data=(Slow(clock, 4.0), Slow(clock, 2.0, 2)),
    )
    found = fl.fit(found, 2)
    rows = found.memory["Profiler"]["epochs"]
    assert [(row["epoch"], row["phase"], row["steps"]) for row in rows] == [
        (1, "training", 4), (1, "validation", 2), (2, "training", 4), (2, "validation", 2),
    ]  # fmt: skip
    # The callbacks of an epoch's beginning and steps, the others' at its end not.
    assert [rows[0][name] for name in ("waiting", "step", "callbacks", "device")] == [16.0, 64.0, 9.0, None]
    assert [rows[1][name] for name in ("waiting", "step", "callbacks", "device")] == [4.0, 32.0, 5.0, None]
    assert all(row["seconds"] == row["waiting"] + row["step"] + row["callbacks"] for row in rows)
    assert time_report(found).splitlines() == [
        "phase       epochs  steps  seconds  waiting   step  callbacks",
        "training         2      8      178    18.0%  71.9%      10.1%",
        "validation       2      4       82     9.8%  78.0%      12.2%",
    ]
    assert capsys.readouterr().err.strip() == time_report(found)


@pytest.mark.parametrize("step", range(1, 8))
def test_a_run_that_was_left_anywhere_measures_on(clock, step, capsys):
    def leave(run):
        if run.step == step:
            raise fl.CancelFit("left")

    costs = {"clock": clock, "step_seconds": 16.0, "data": Slow(clock, 4.0)}
    left = fl.fit(learner(Profiler(), CustomCallback("step_end", leave), **costs), 2)
    found = fl.fit(left, 2 - left.epoch)
    whole = fl.fit(learner(Profiler(), **costs), 2)
    rows, wanted = (each.memory["Profiler"]["epochs"] for each in (found, whole))
    assert rows == wanted


def test_a_step_that_is_cancelled_counts_as_time_of_a_step_but_as_none(clock, capsys):
    def cancel(run):
        clock.now += 5.0
        raise fl.CancelStep

    found = fl.fit(learner(Profiler(), CustomCallback("loss_begin", cancel)), 1)
    (row,) = found.memory["Profiler"]["epochs"]
    assert (row["steps"], row["step"], row["seconds"]) == (0, 20.0, 20.0)


def test_a_fit_that_ends_in_mid_epoch_shows_what_there_is(clock, capsys):
    def leave(run):
        raise fl.CancelFit("left")

    fl.fit(learner(Profiler(), CustomCallback("step_end", leave), clock=clock, step_seconds=2.0), 1)
    assert capsys.readouterr().err.splitlines()[1].split() == [
        "training", "1", "1", "2", "0.0%", "100.0%", "0.0%",
    ]  # fmt: skip


def test_a_report_without_a_profiler_is_an_error():
    with pytest.raises(ValueError, match="the learner has no Profiler, or one inside"):
        time_report(learner())


class Event:
    """An event of a device on which time passes by itself."""

    now, waited = 0.0, 0

    def record(self):
        Event.now += 3.0
        self.at = Event.now

    def synchronize(self):
        Event.waited += 1

    def elapsed_time(self, other):
        return other.at - self.at


def test_a_device_has_its_own_clock_and_is_waited_for_as_an_epoch_ends(capsys):
    Event.waited = 0
    with patch.object(module, "_clock", lambda model: DeviceClock(Event)):
        found = fl.fit(learner(Profiler()), 2)
    rows = found.memory["Profiler"]["epochs"]
    assert [row["device"] for row in rows] == [4 * 3.0 / 1000] * 2
    assert Event.waited == 2
    assert time_report(found).splitlines()[0].split()[-2:] == ["callbacks", "device"]


def test_a_long_epoch_keeps_few_events_of_a_device():
    clock = DeviceClock(Event)
    for _ in range(5000):
        clock.begin()
        clock.end()
        assert len(clock._steps) < 1024
    assert clock.read() == pytest.approx(5000 * 3.0 / 1000)
    assert clock.read() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_device_is_busy_for_a_part_of_the_time(capsys):
    from fluxlike.learning.callbacks.to_device import ToDevice

    found = fl.fit(learner(ToDevice("cuda"), Profiler()), 2)
    assert all(0 < row["device"] <= row["seconds"] for row in found.memory["Profiler"]["epochs"])


# Traces


def test_a_trace_opens_and_has_the_operations_of_its_steps_alone(tmp_path):
    def name(run):
        with torch.profiler.record_function(f"step {run.step}"):
            pass

    names = CustomCallback("step_begin", name, "training")
    fl.fit(learner(Traces(tmp_path / "new", steps=(2, 5)), names), 2)
    (file,) = (tmp_path / "new").iterdir()
    assert file.name == "steps-2-to-4.json"
    found = [event.get("name") for event in json.loads(file.read_text())["traceEvents"]]
    assert [n for n in found if str(n).startswith("step ")] == ["step 2", "step 3", "step 4"]
    assert sum(n == "aten::mse_loss" or n == "aten::addmm" for n in found) >= 3


def test_what_was_traced_until_the_fit_ends_is_written(tmp_path):
    fl.fit(learner(Traces(tmp_path, steps=(2, 50))), 1)
    assert [file.name for file in tmp_path.iterdir()] == ["steps-2-to-3.json"]


def test_what_was_traced_until_an_error_is_written(tmp_path):
    def fail(run):
        if run.step == 3:
            raise ZeroDivisionError

    with pytest.raises(fl.CallbackError):
        fl.fit(learner(Traces(tmp_path, steps=(0, 50)), CustomCallback("step_end", fail)), 1)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["traceEvents"]


def test_a_later_fit_traces_what_is_left_of_its_steps(tmp_path):
    first = fl.fit(learner(Traces(tmp_path, steps=(2, 6))), 1)
    fl.fit(first, 1)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["steps-2-to-3.json", "steps-4-to-5.json"]


def test_steps_that_are_not_reached_leave_no_file(tmp_path):
    fl.fit(learner(Traces(tmp_path / "new")), 1)
    assert not (tmp_path / "new").exists()


def test_a_traced_run_has_the_same_numbers(tmp_path):
    def trained(*callbacks):
        torch.manual_seed(0)
        return fl.fit(learner(*callbacks), 2).model

    assert fl.tree.allclose(trained(Traces(tmp_path, steps=(1, 6))), trained(), rtol=0, atol=0)


@pytest.mark.parametrize("steps", [(5, 5), (-1, 3), (3, 1)])
def test_a_range_of_steps_that_is_none_is_an_error(steps):
    with pytest.raises(ValueError, match="write the first step and the end"):
        Traces("folder", steps=steps)
