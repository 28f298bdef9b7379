"""`ProgressPrinter`: how far a fit is, shown while it runs."""

from __future__ import annotations

import math
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.displays import Frame, display

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

__all__ = ["ProgressPrinter"]

_PAGES = Path("/proc/self/statm")
_WINDOW = 25  # frames over which a rate is measured


@dataclass(frozen=True)
class ProgressPrinter(Callback):
    """Shows how far an epoch is: time left, loss, steps and samples a second, and memory.

    On a terminal it is a bar of rich, in a notebook one of the notebook's own, both drawn anew about twice a
    second and gone at the end; elsewhere, or where rich is not installed, it is a plain line now and then.
    All go to standard error. Each time one loss is read from the device, and drawing takes at most a
    hundredth of the time.

    Args:
        every: seconds between plain lines. (default: 60)

    Example:
        >>> import torch, fluxlike as fl
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 5
        >>> shown = fl.callbacks.ProgressPrinter(every=30.0)
        >>> options = {"progress": False, "callbacks": [shown]}
        >>> learner = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options))
    """

    every: float = 60.0
    reads = ("out",)
    of_first_rank = True

    def __post_init__(self) -> None:
        if not self.every >= 0:
            raise ValueError(f"ProgressPrinter has every={self.every!r}; write seconds between lines, from 0")

    def fit_begin(self, run: Any) -> None:
        run.live["display"] = display(self.every)
        _begin(run, run.batch_number)
        run.live["next"] = perf_counter() + run.live["display"].interval

    def epoch_begin(self, run: Any) -> None:
        _begin(run, 0)

    def step_end(self, run: Any) -> None:
        now, live = perf_counter(), run.live
        if now < live["next"]:
            return
        live["display"].show(_frame(run, now))
        live["next"] = now + live["display"].interval

    def fit_end(self, run: Any) -> None:
        shown = run.live.pop("display", None)
        if shown is not None:
            shown.stop()

    exception = fit_end


def _begin(run: Any, batch: int) -> None:
    run.live["marks"] = deque([(perf_counter(), batch)], maxlen=_WINDOW)
    run.live["samples"] = 0


def _frame(run: Any, now: float) -> Frame:
    """What is to be said, the most important facts first."""
    live, done, of = run.live, run.batch_number, run.batches
    then, first = live["marks"][0]
    live["marks"].append((now, done))
    live["samples"] = max(live["samples"], run.samples)  # the last batch may be smaller
    rate = (done - first) / max(now - then, 1e-9)
    facts = []
    if of and rate:
        facts.append(f"{_clock((of - done) / rate)} left")
    loss = run.out.get("loss")
    if loss is not None:
        facts.append(f"loss {float(loss):.4g}")
    facts += [f"{_short(rate)} steps/s", f"{_short(rate * live['samples'])} samples/s"]
    return Frame(f"epoch {run.epoch}/{run.goal} {run.phase}", done, of, [*facts, *_memory()])


def _short(rate: float) -> str:
    """Three digits, or all of a larger number."""
    return f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _memory() -> list[str]:
    """The memory in use: on a card if there is one in use, else of this process, where the system tells."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        used = torch.cuda.memory_allocated()
    elif resource is None:
        return []
    elif _PAGES.exists():
        used = int(_PAGES.read_text().split()[1]) * resource.getpagesize()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        used = peak if sys.platform == "darwin" else peak * 1024
    return [f"{used / 2**30:.1f} GiB"]
