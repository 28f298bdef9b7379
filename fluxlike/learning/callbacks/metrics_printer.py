"""`MetricsPrinter`: losses and metrics, printed after every epoch."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fluxlike.learning.callback import Callback

__all__ = ["MetricsPrinter"]

_NARROWEST = 9  # a column
_FILE = 120  # characters a line where there is no terminal
_GAP = "  "
_NO_METRIC = ("epoch", "phase", "seconds")
_OF_A_MATRIX = re.compile(r"_\d+_\d+$")  # such as a confusion matrix: in the history, and too wide for a line

Row = dict[str, Any]


@dataclass(frozen=True)
class MetricsPrinter(Callback):
    """Prints a line of a table after every epoch: losses and metrics by phase, and seconds.

    Where a line would be longer than the terminal is wide, every phase has a line of its own. Standard error
    gets them.

    Example:
        >>> import torch, fluxlike as fl
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 5
        >>> callbacks = [fl.callbacks.Metrics(), fl.callbacks.Recorder(), fl.callbacks.MetricsPrinter()]
        >>> options = {"defaults": False, "callbacks": callbacks}
        >>> learner = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options), 2)
    """

    reads = ("history",)
    of_first_rank = True

    def fit_begin(self, run: Any) -> None:
        if run.resumes and run.step:
            left = f"goes on {run.where()}" if run.stopped is None else f"has ended: {run.stopped}"
            print(f"the run {left}", file=sys.stderr)

    def epoch_end(self, run: Any) -> None:
        if run.phase != run.learner.phases[-1].name:
            return
        rows = _last_rows(run.history.epochs, run.epoch)
        number = f"{run.epoch}/{run.goal}"
        header, lines = _across(number, rows)
        if len(rows) > 1 and len(header[-1]) > _width():
            header, lines = _below(number, rows)
        if run.live.get("header") == header:
            header = []
        else:
            run.live["header"] = header
        print("\n".join([*header, *lines]), file=sys.stderr, flush=True)


def _across(number: str, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """A line for all phases; above it their names, if they are several, each over its columns."""
    names, line, above = [], [], []
    long = max(len("epoch"), len(number))
    names.append("epoch".rjust(long))
    line.append(number.rjust(long))
    above.append(" " * long)
    for row in rows:
        cells = dict(_cells(row))
        widths = {name: _column(name) for name in cells}
        if len(rows) > 1 and cells:
            first = next(iter(cells))
            widths[first] = max(widths[first], len(row["phase"]))
            group = sum(widths.values()) + len(_GAP) * (len(widths) - 1)
            above.append(row["phase"].rjust(widths[first]).ljust(group))
        names += [name.rjust(widths[name]) for name in cells]
        line += [text.rjust(widths[name]) for name, text in cells.items()]
    names.append("seconds".rjust(_NARROWEST))
    line.append(_seconds(rows).rjust(_NARROWEST))
    header = [_GAP.join(above).rstrip()] if len(rows) > 1 else []
    return [*header, _GAP.join(names)], [_GAP.join(line)]


def _below(number: str, rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """A line for each phase."""
    columns = list(dict.fromkeys(name for row in rows for name, _ in _cells(row)))
    phase = max(len(row["phase"]) for row in rows)
    long = max(len("epoch"), len(number))
    texts = [("epoch", "phase", {name: name for name in columns}, "seconds")]
    for place, row in enumerate(rows):
        texts.append((number if place == 0 else "", row["phase"], dict(_cells(row)), _seconds([row])))
    lines = [
        _GAP.join(
            (
                first.rjust(long),
                second.ljust(phase),
                *(cells.get(name, "").rjust(_column(name)) for name in columns),
                last.rjust(_NARROWEST),
            )
        )
        for first, second, cells, last in texts
    ]
    return lines[:1], lines[1:]


def _cells(row: Row) -> Iterator[tuple[str, str]]:
    """The numbers of an epoch of a phase, by name."""
    for name, value in row.items():
        of_many = name.startswith("learning_rate.") or _OF_A_MATRIX.search(name)
        if name not in _NO_METRIC and not of_many and isinstance(value, (int, float)):
            yield name, f"{value:.4g}" if isinstance(value, float) else str(value)


def _column(name: str) -> int:
    return max(len(name), _NARROWEST)


def _seconds(rows: Sequence[Row]) -> str:
    return f"{sum(row.get('seconds', 0.0) for row in rows):.1f}"


def _width() -> int:
    """How many characters a line may have."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (AttributeError, OSError, ValueError):
        return _FILE


def _last_rows(epochs: Any, epoch: int) -> list[Row]:
    """What is known of an epoch: a row for each phase."""
    rows: list[Row] = []
    for place in range(len(epochs) - 1, -1, -1):
        row = epochs[place]
        if row["epoch"] != epoch or any(row["phase"] == other["phase"] for other in rows):
            break
        rows.insert(0, row)
    return rows
