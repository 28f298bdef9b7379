"""Measured rows as pictures: bars of ratios beside their targets, and curves of scaling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from benchmarks.machine import hardware
from benchmarks.results import Found, Results

MET, MISSED, FREE, DARK, GREY = "#389826", "#cb3c33", "#4063d8", "#333333", "#999999"
LARGEST = 4.0  # the ratio at which the axis ends; a longer bar is cut

Line = tuple[str, str]  # what, against what


def draw(results: Results, names: Sequence[str], path: Path) -> list[Path]:
    """Draw the rows of some benchmarks.

    Args:
        results: the rows.
        names: of the benchmarks.
        path: where the ratios go, .png or .svg; curves of scaling go beside it, named ``…_scaling``.

    Returns:
        The files that were written.
    """
    matplotlib.rcParams["svg.hashsalt"] = "fluxlike"  # the same file every time
    ratios = {name: [r for r in results.of([name]) if "ratio" in r] for name in names}
    ratios = {name: rows for name, rows in ratios.items() if rows}
    curves = [row for row in results.of(names) if "exponent" in row]
    drawn = []
    if ratios:
        drawn.append(_saved(_bars(ratios, results), path))
    if curves:
        drawn.append(_saved(_curves(curves), path.with_stem(f"{path.stem}_scaling")))
    return drawn


def _saved(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=100, metadata={"Date": None} if path.suffix == ".svg" else None)
    plt.close(figure)
    return path


def _by_line(rows: Sequence[Found]) -> dict[Line, dict[int, Found]]:
    """The rows by what they compare, and by the number of threads."""
    found: dict[Line, dict[int, Found]] = {}
    for row in rows:
        found.setdefault((row["name"], row["peer"]), {})[row["threads"]] = row
    return found


def _bars(groups: dict[str, list[Found]], results: Results) -> Any:
    """A table of bars, one block a benchmark: left of 1, fluxlike takes less."""
    blocks = {name: _by_line(rows) for name, rows in groups.items()}
    heights = [len(lines) + 1.2 for lines in blocks.values()]
    figure, axes = plt.subplots(
        len(blocks),
        figsize=(12, 0.26 * sum(heights) + 1.2),
        height_ratios=heights,
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    least = min(row["ratio"] for rows in groups.values() for row in rows)
    axes.flat[0].set_xscale("log", base=2)
    axes.flat[0].set_xlim(min(0.5, 0.9 * least), LARGEST)
    for axis, (name, lines) in zip(axes.flat, blocks.items(), strict=True):
        _block(axis, name, lines)
    axes.flat[-1].set_xlabel("fluxlike's cost over the peer's")
    figure.suptitle(_measured_on(results, list(blocks)), fontsize=7, color=DARK)
    legend = [
        Patch(color=MET, label="target met"),
        Patch(color=MISSED, label="target missed"),
        Patch(color=FREE, label="no target"),
        Line2D([], [], color=DARK, linestyle="", marker="|", markersize=9, label="target"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize=7, frameon=False)
    return figure


def _measured_on(results: Results, names: Sequence[str]) -> str:
    """Machines and days of some benchmarks, in one line."""
    runs = [results.runs[name] for name in names if name in results.runs]
    machines = sorted({hardware(run) for run in runs})
    days = sorted({run["date"][:10] for run in runs})
    return "; ".join([*machines, " to ".join(dict.fromkeys([*days[:1], *days[-1:]]))])


def _block(axis: Axes, title: str, lines: dict[Line, dict[int, Found]]) -> None:
    axis.set_ylim(len(lines) - 0.4, -0.6)
    axis.set_title(title, loc="left", fontsize=8, fontweight="bold")
    axis.axvline(1, color=DARK, linewidth=0.8)
    axis.set_yticks(range(len(lines)), [f"{what}  ·  {peer}" for what, peer in lines], fontsize=7)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=7)
    axis.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x >= 1 else f"1/{round(1 / x)}")
    axis.spines[["top", "right", "left"]].set_visible(False)
    for y, by_threads in enumerate(lines.values()):
        share = 0.7 / len(by_threads)
        for k, (_, row) in enumerate(sorted(by_threads.items())):
            ratio, target = row["ratio"], row["target"]
            colour = FREE if target is None else MET if ratio <= target else MISSED
            end = min(ratio, LARGEST)
            place = y + (k + 0.5) * share - 0.35
            axis.barh(place, end - 1, share * 0.9, left=1, color=colour, alpha=1.0 if k == 0 else 0.6)
        target = next(iter(by_threads.values()))["target"]
        if target is not None:
            axis.plot([target, target], [y - 0.42, y + 0.42], color=DARK, linewidth=1.5)
        axis.annotate(
            _numbers(by_threads), (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=7
        )


def _numbers(by_threads: dict[int, Found]) -> str:
    """The ratios by threads, and the target."""
    ratios = "  ".join(f"{row['ratio']:.2f} ({n})" for n, row in sorted(by_threads.items()))
    target = next(iter(by_threads.values()))["target"]
    return ratios if target is None else f"{ratios}   at most {target:.3g}"


def _curves(points: Sequence[Found]) -> Any:
    """Cost over size on logarithmic axes, one small picture a curve."""
    curves: dict[tuple[str, str], list[Found]] = {}
    for point in points:
        curves.setdefault((point["name"], point["axis"]), []).append(point)
    columns = 5
    lines = -(-len(curves) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(13, 2.1 * lines + 0.4), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(curves) :]:
        axis.set_visible(False)
    for axis, ((name, _), found) in zip(axes.flat, curves.items(), strict=False):
        _curve(axis, name, found)
    legend = [
        Line2D([], [], color=FREE, marker="o", markersize=4, label="fluxlike"),
        Line2D([], [], color=GREY, marker="o", markersize=3, label="torch"),
        Line2D([], [], color=MISSED, marker="o", linestyle="", markersize=5, label="faster than the work"),
        Line2D([], [], color=DARK, linestyle=":", label="in proportion to the work"),
    ]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


def _curve(axis: Axes, title: str, found: Sequence[Found]) -> None:
    size, cost, work = ([point[part] for point in found] for part in ("size", "cost", "work"))
    axis.set_xscale("log")
    axis.set_yscale("log", nonpositive="mask")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_xticks(size, [f"{n:,}" for n in size])
    axis.minorticks_off()
    if found[0]["peer"] is not None:
        axis.plot(size, [p["peer"] for p in found], color=GREY, marker="o", markersize=3, linewidth=1)
    axis.plot(size, cost, color=FREE, marker="o", markersize=4, linewidth=1.2)
    steep = [p for p in found if p["steep"]]
    axis.plot([p["size"] for p in steep], [p["cost"] for p in steep], "o", color=MISSED, markersize=5)
    if cost[-1] > 0:
        axis.plot(size, [cost[-1] * w / work[-1] for w in work], ":", color=DARK, linewidth=0.8)
    axis.set_title(f"{title}, {found[0]['unit']}", fontsize=7)
    axis.tick_params(labelsize=6)
    axis.set_xlabel(found[0]["axis"], fontsize=6)
    axis.spines[["top", "right"]].set_visible(False)
