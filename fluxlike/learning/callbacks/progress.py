"""`ProgressPrinter` and `MetricsPrinter`: what a fit shows while it runs."""

from __future__ import annotations

import importlib.util
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from fluxlike.learning.callback import Callback

__all__ = ["MetricsPrinter", "ProgressPrinter"]

_FRAME = 0.4  # seconds between two frames: a frame takes some milliseconds


@dataclass(frozen=True)
class ProgressPrinter(Callback):
    """Shows how far an epoch is: batches a second, the loss, memory, and the time left.

    On a terminal or in a notebook it is a bar of rich, drawn anew a few times a second; elsewhere it is a
    plain line now and then. Both go to standard error.

    Args:
        every: seconds between plain lines. (default: 60)
    """

    every: float = 60.0
    reads = ("out",)

    def fit_begin(self, run: Any) -> None:
        bar = _bar()
        run.live.update(bar=bar, begun=perf_counter(), first=run.batch_number, phase="")
        run.live["next"] = perf_counter() + (_FRAME if bar else self.every)
        if bar is not None:
            bar.start()

    def epoch_begin(self, run: Any) -> None:
        run.live.update(begun=perf_counter(), first=0)

    def step_end(self, run: Any) -> None:
        live = run.live
        now = perf_counter()
        if now < live["next"]:
            return
        bar = live["bar"]
        live["next"] = now + (_FRAME if bar else self.every)
        done = run.batch_number - live["first"]
        rate = done / max(now - live["begun"], 1e-9)
        facts = [f"{rate:.3g} batches/s", *_loss(run), f"{_memory() / 2**30:.1f} GiB"]
        if bar is not None:
            bar.show(f"epoch {run.epoch}/{run.goal} {run.phase}", run.batch_number, run.batches, facts, rate)
            return
        of = f" of {run.batches}" if run.batches else ""
        if run.batches and rate:
            facts.append(f"{_clock((run.batches - run.batch_number) / rate)} left")
        print(
            f"epoch {run.epoch}/{run.goal} {run.phase}: batch {run.batch_number}{of}, {', '.join(facts)}",
            file=sys.stderr,
        )

    def fit_end(self, run: Any) -> None:
        if run.live.get("bar") is not None:
            run.live["bar"].stop()

    exception = fit_end


@dataclass(frozen=True)
class MetricsPrinter(Callback):
    """Prints a line of a table after every epoch: losses and metrics of all phases, and seconds.

    Standard error gets it.
    """

    reads = ("history",)

    def epoch_end(self, run: Any) -> None:
        if run.phase != run.learner.phases[-1].name:
            return
        rows = _last_rows(run.history.epochs, run.epoch)
        cells = {"epoch": f"{run.epoch}/{run.goal}"}
        several = len(rows) > 1
        for row in rows:
            for name, value in row.items():
                if name not in ("epoch", "phase", "seconds") and not isinstance(value, str):
                    cells[f"{row['phase']} {name}" if several else name] = _number(value)
        cells["seconds"] = f"{sum(row.get('seconds', 0.0) for row in rows):.1f}"
        header = list(cells) != run.live.get("columns")
        run.live["columns"] = list(cells)
        lines = [cells.keys()] * header + [cells.values()]
        for line in lines:
            texts = (text.rjust(max(len(name), 9)) for text, name in zip(line, cells, strict=True))
            print("  ".join(texts), file=sys.stderr)


def _last_rows(epochs: Any, epoch: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for place in range(len(epochs) - 1, -1, -1):
        row = epochs[place]
        if row["epoch"] != epoch or any(row["phase"] == other["phase"] for other in rows):
            break
        rows.insert(0, row)
    return rows


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _loss(run: Any) -> list[str]:
    loss = run.out.get("loss")
    return [] if loss is None else [f"loss {float(loss):.4g}"]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _memory() -> float:
    """Bytes in use: on a card if there is one in use, else those of this process."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.memory_allocated()
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError):
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    import resource

    return pages * resource.getpagesize()


class _Bar:
    """A bar of rich in one line."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        self._progress = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=28), TextColumn("{task.fields[facts]}"),
            console=console, auto_refresh=False, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("", total=None, facts="")

    def start(self) -> None:
        self._progress.start()

    def show(self, title: str, done: int, of: int | None, facts: list[str], rate: float) -> None:
        left = [f"{_clock((of - done) / rate)} left"] if of and rate else []
        count = f"{done}/{of}" if of else f"{done} batches"
        text = "  ".join([count, *facts, *left])
        self._progress.update(self._task, description=title, completed=done, total=of, facts=text)
        self._progress.refresh()

    def stop(self) -> None:
        self._progress.stop()


def _bar() -> _Bar | None:
    """A bar, where somebody may watch and rich is installed."""
    if importlib.util.find_spec("rich") is None:
        return None
    if "ipykernel" not in sys.modules and not sys.stderr.isatty():
        return None
    from rich.console import Console

    return _Bar(Console(stderr=True))
