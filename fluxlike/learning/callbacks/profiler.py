"""`Profiler`: where the time of a run goes: to data, steps or callbacks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from fluxlike.learning.callback import Callback
from fluxlike.learning.order import names
from fluxlike.trees.structure import flatten

__all__ = ["DeviceClock", "Profiler", "time_report"]


@dataclass(frozen=True)
class Profiler(Callback):
    """Measure how much of the time goes to waiting for data, to the steps and to the callbacks.

    It prints the table of `time_report` as a fit ends, on standard error. It comes before the other
    callbacks and does nothing but read the clock. Callbacks inside a step (``loss_begin`` to
    ``backward_end``) count as part of it.

    On CUDA a step is over for the host when its kernels are queued, and waiting for them would
    change what is measured. So nothing waits: ``step`` is the host's time, to queue the kernels or to
    wait for a full queue; ``device`` is the time from the first to the last kernel of the steps, by the
    device's own clock, which is read as an epoch ends. What it lacks to the whole, the device was idle.

    ``learner.memory["Profiler"]["epochs"]`` has a row for each epoch of each phase, in seconds.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.profiler import Profiler, time_report
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 10
        >>> options = {"callbacks": [Profiler()], "progress": False}
        >>> learner = fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options)
        >>> print(time_report(fl.fit(learner, 2)))  # doctest: +ELLIPSIS, +NORMALIZE_WHITESPACE
        phase     epochs  steps  seconds  waiting  step  callbacks
        training       2     20 ...
    """

    reads = ("model",)
    before = (Callback,)

    def init(self) -> dict[str, Any]:
        return {"epochs": [], "current": None}

    def epoch_begin(self, run: Any) -> None:
        _start(run)

    def step_begin(self, run: Any) -> None:
        if "then" not in run.live:  # after a resume in the middle of an epoch
            _start(run)
        _mark(run, "callbacks")

    def loss_begin(self, run: Any) -> None:
        _mark(run, "step")
        if run.live["clock"] is not None:
            run.live["clock"].begin()

    def step_end(self, run: Any) -> None:
        _mark(run, "callbacks")
        run.memory["current"]["steps"] += 1
        if run.live["clock"] is not None:
            run.live["clock"].end()

    def epoch_end(self, run: Any) -> None:
        _stop(run)
        if run.memory["current"] is not None:
            run.memory["epochs"] = [*run.memory["epochs"], run.memory["current"]]
            run.memory["current"] = None

    def fit_end(self, run: Any) -> None:
        _stop(run)
        if run.ranks.first:
            print(_table(run.memory), file=sys.stderr)


def time_report(learner: Any, /) -> str:
    """A table of what a `Profiler` has measured in all fits of a learner.

    For each phase the numbers of epochs and steps, the seconds, and the shares of waiting for data, steps
    and callbacks; on CUDA, of the device's own time too.

    Args:
        learner: a learner with a `Profiler` among its callbacks.

    Raises:
        ValueError: the learner has no `Profiler`.

    Example:
        >>> import fluxlike as fl
        >>> from fluxlike.learning.callbacks.profiler import Profiler, time_report
        >>> learner = fl.Learner(fl.Dense(2, 1), [], fl.Adam(), fl.losses.mse, callbacks=[Profiler()])
        >>> print(time_report(learner))
        phase  epochs  steps  seconds  waiting  step  callbacks
    """
    named = zip(names(learner.callbacks), learner.callbacks, strict=True)
    known = [name for name, callback in named if isinstance(callback, Profiler)]
    if not known:
        raise ValueError(
            "the learner has no Profiler, or one inside another callback; write Learner(…, "
            "callbacks=[fluxlike.callbacks.Profiler()])"
        )
    return _table(learner.memory.get(known[0], Profiler().init()))


class DeviceClock:
    """The time that steps take on a device, by events in its own queue; nothing waits for it.

    Args:
        event: makes an event with ``record()``, ``synchronize()`` and ``elapsed_time(other)`` in ms.
    """

    def __init__(self, event: Callable[[], Any]) -> None:
        self._event = event
        self._steps: list[tuple[Any, Any]] = []
        self._first: Any = None
        self._seconds = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._first = self._event()
        self._first.record()

    def end(self) -> None:
        """It ends."""
        last = self._event()
        last.record()
        self._steps.append((self._first, last))
        if len(self._steps) == 1024:
            self._take(512)  # long over, most likely

    def read(self) -> float:
        """The seconds since the last reading; waits for the last step."""
        self._take(len(self._steps))
        seconds, self._seconds = self._seconds, 0.0
        return seconds

    def _take(self, n: int) -> None:
        if n:
            self._steps[n - 1][1].synchronize()
            self._seconds += sum(first.elapsed_time(last) for first, last in self._steps[:n]) / 1000
            del self._steps[:n]


def _clock(model: Any) -> DeviceClock | None:
    """The clock of the model's device; None for those that steps wait for."""
    if any(isinstance(x, Tensor) and x.is_cuda for x in flatten(model)[0]):
        return DeviceClock(lambda: torch.cuda.Event(enable_timing=True))
    return None


def _start(run: Any) -> None:
    live, memory = run.live, run.memory
    live["clock"] = _clock(run.model)
    live["then"], live["waited"], live["part"] = perf_counter() - run.waited, 0.0, "callbacks"
    if memory["current"] is None:
        times = dict.fromkeys(("seconds", "waiting", "step", "callbacks"), 0.0)
        device = None if live["clock"] is None else 0.0
        memory["current"] = {"epoch": run.epoch, "phase": run.phase, "steps": 0, **times, "device": device}


def _mark(run: Any, part: str) -> None:
    """Count the time since the last mark, and say what comes now."""
    live, current, now = run.live, run.memory["current"], perf_counter()
    waited, passed = run.waited - live["waited"], now - live["then"]
    current["seconds"] += passed
    current["waiting"] += waited
    current[live["part"]] += passed - waited
    live["then"], live["waited"], live["part"] = now, run.waited, part


def _stop(run: Any) -> None:
    """Count the time since the last mark, if any, and what the device's clock says."""
    if "then" not in run.live:
        return
    _mark(run, "callbacks")
    clock, current = run.live["clock"], run.memory["current"]
    if clock is not None:
        current["device"] = (current["device"] or 0.0) + clock.read()
    del run.live["then"]


def _table(memory: Mapping[str, Any]) -> str:
    current = memory["current"]
    rows = [*memory["epochs"], *([current] if current is not None else [])]
    measured = any(row["device"] is not None for row in rows)
    shares = ("waiting", "step", "callbacks", *(("device",) if measured else ()))
    lines = [("phase", "epochs", "steps", "seconds", *shares)]
    for phase in dict.fromkeys(row["phase"] for row in rows):
        own = [row for row in rows if row["phase"] == phase]
        seconds = sum(row["seconds"] for row in own)
        parts = (sum(row[share] or 0.0 for row in own) / max(seconds, 1e-12) for share in shares)
        steps = sum(row["steps"] for row in own)
        lines.append((phase, str(len(own)), str(steps), f"{seconds:.4g}", *(f"{part:.1%}" for part in parts)))
    return "\n".join(_aligned(lines))


def _aligned(lines: list[tuple[str, ...]]) -> Iterable[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = (cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))
        yield "  ".join((first.ljust(widths[0]), *cells))
