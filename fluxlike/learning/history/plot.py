"""Pictures of a history."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from fluxlike.learning.history.table import Table
from fluxlike.optional import optional

__all__ = ["plotted"]

_MOST = 12  # panels by epoch
_RATE = "learning_rate"
_NO_METRIC = ("epoch", "phase", "step", "seconds")
_COLOURS = {"training": "#2a78b5", "validation": "#d9722a"}
_OTHERS = ("#3f9b62", "#8d5fb0", "#b3424a", "#7a6a55")
_INK, _FAINT = "#333333", "#9a9a9a"
_SMOOTH = 0.9  # of the running mean that is drawn over the losses of steps

Panel = tuple[str, Callable[[Any], None]]


def plotted(epochs: Table, steps: Table, names: Sequence[str] | None) -> Any:
    """A figure with a panel for every column by epoch, and for loss, rates and other columns by step."""
    figures = optional("matplotlib.figure", "plot")
    chosen = _metrics(epochs) if names is None else list(names)
    panels = [_by_epoch(epochs, name) for name in (chosen[:_MOST] if names is None else chosen)]
    panels += _by_step(steps)
    if not panels:
        raise ValueError("a history of no epochs and no steps has nothing to draw")
    wide = _panels_across(len(panels))
    high = math.ceil(len(panels) / wide)
    figure = figures.Figure(figsize=(0.6 + 4.2 * wide, 0.5 + 2.9 * high), layout="constrained", dpi=120)
    figure.set_facecolor("white")
    axes = figure.subplots(high, wide, squeeze=False).ravel()
    for (title, draw), axis in zip(panels, axes, strict=False):
        _plain(axis, title)
        draw(axis)
    for axis in axes[len(panels) :]:
        axis.remove()
    if names is None and len(chosen) > _MOST:
        text = f"{_MOST} of {len(chosen)} columns; plot([{chosen[_MOST]!r}]) draws others"
        figure.suptitle(text, fontsize=9, color=_FAINT)
    return figure


def _panels_across(number: int) -> int:
    return {1: 1, 2: 2, 3: 3, 4: 2}.get(number, 3)


def _metrics(epochs: Table) -> list[str]:
    """The columns with numbers, the loss first."""
    found = [
        name
        for name in epochs.columns
        if name not in _NO_METRIC and not _is_rate(name) and any(_number(cell) for cell in epochs[name])
    ]
    return sorted(found, key=lambda name: name != "loss")


def _by_epoch(epochs: Table, name: str) -> Panel:
    cells = epochs[name]  # or a KeyError that names the others
    columns = (epochs["phase"], epochs["epoch"], cells)
    lines: dict[str, list[tuple[float, float]]] = {}
    for phase, epoch, cell in zip(*columns, strict=True):
        if _number(cell):
            lines.setdefault(phase, []).append((epoch, cell))

    def draw(axis: Any) -> None:
        for (phase, points), colour in zip(lines.items(), _colours(lines), strict=True):
            x, y = zip(*points, strict=True)
            few = len(x) <= 30
            axis.plot(x, y, color=colour, lw=1.6, marker="o" if few else "", ms=3.5, label=phase)
        axis.set_xlabel("epoch", color=_INK)
        axis.xaxis.set_major_locator(_whole_numbers())
        if lines:
            axis.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
        seen = {epoch for points in lines.values() for epoch, _ in points}
        if len(seen) == 1:
            axis.set_xlim(min(seen) - 0.5, min(seen) + 0.5)

    return _words(name), draw


def _by_step(steps: Table) -> list[Panel]:
    """Panels of the loss, of all learning rates together, and of every other column that varies."""
    columns = {name: _points(steps, name) for name in steps.columns if name not in ("step", "epoch", "phase")}
    rates = {name: points for name, points in columns.items() if _is_rate(name)}
    panels = [("training loss by step", _loss(columns["loss"]))] if "loss" in columns else []
    if rates:
        title = "learning rate" if len(rates) == 1 else "learning rates"
        panels.append((f"{title} by step", _lines(rates)))
    for name, points in columns.items():
        if name != "loss" and name not in rates and len({value for _, value in points}) > 1:
            panels.append((f"{_words(name)} by step", _lines({name: points})))
    return panels


def _points(steps: Table, name: str) -> list[tuple[float, float]]:
    cells = zip(steps["step"], steps[name], strict=True)
    return [(step, cell) for step, cell in cells if _number(step) and _number(cell)]


def _loss(points: list[tuple[float, float]]) -> Callable[[Any], None]:
    def draw(axis: Any) -> None:
        x, y = zip(*points, strict=True) if points else ((), ())
        colour, many = _COLOURS["training"], len(points) > 30
        axis.plot(x, y, color=colour, lw=0.8 if many else 1.6, alpha=0.35 if many else 1)
        if many:
            axis.plot(x, _smooth(y), color=colour, lw=1.6, label="running mean")
            axis.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
        _steps_below(axis)

    return draw


def _lines(columns: dict[str, list[tuple[float, float]]]) -> Callable[[Any], None]:
    def draw(axis: Any) -> None:
        colours = (*_COLOURS.values(), *_OTHERS)
        least = min((value for points in columns.values() for _, value in points), default=0.0)
        for place, (name, points) in enumerate(columns.items()):
            x, y = zip(*points, strict=True) if points else ((), ())
            label = name.removeprefix(_RATE).removeprefix(".") or "everywhere"
            axis.plot(x, y, color=colours[place % len(colours)], lw=1.6, label=label)
        if len(columns) > 1:
            axis.legend(frameon=False, fontsize=8.5, labelcolor=_INK)
        axis.yaxis.set_major_formatter(lambda value, place: f"{value:.3g}")
        if least >= 0 and any(map(_is_rate, columns)):
            axis.set_ylim(bottom=0)
        _steps_below(axis)

    return draw


def _steps_below(axis: Any) -> None:
    axis.set_xlabel("step", color=_INK)
    axis.xaxis.set_major_locator(_whole_numbers())


def _plain(axis: Any, title: str) -> None:
    """Only what helps to read: a title, a faint grid, two axes."""
    axis.set_facecolor("white")
    axis.set_title(title, loc="left", fontsize=10.5, color=_INK)
    axis.grid(True, color="#e6e6e6", lw=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(colors=_INK, labelsize=8.5, length=3)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_FAINT)
    axis.margins(x=0.03)


def _colours(phases: Any) -> list[str]:
    others = [phase for phase in phases if phase not in _COLOURS]
    rest = {phase: _OTHERS[i % len(_OTHERS)] for i, phase in enumerate(others)}
    return [_COLOURS.get(phase) or rest[phase] for phase in phases]


def _whole_numbers() -> Any:
    ticker = optional("matplotlib.ticker", "plot")
    return ticker.MaxNLocator(nbins=6, integer=True)


def _smooth(values: Sequence[float]) -> list[float]:
    """The running mean from both sides, so that it does not lag; NaN and infinities are left out."""
    there, back = _running_mean(values), _running_mean(values[::-1])[::-1]
    return [(a + b) / 2 for a, b in zip(there, back, strict=True)]


def _running_mean(values: Sequence[float]) -> list[float]:
    """The mean weighted towards the newest, corrected for its start."""
    total, weight, found = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            total = _SMOOTH * total + (1 - _SMOOTH) * value
            weight = _SMOOTH * weight + (1 - _SMOOTH)
        found.append(total / weight if weight else math.nan)
    return found


def _is_rate(name: str) -> bool:
    return name == _RATE or name.startswith(f"{_RATE}.")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _number(cell: Any) -> bool:
    return isinstance(cell, (int, float)) and not isinstance(cell, bool)
