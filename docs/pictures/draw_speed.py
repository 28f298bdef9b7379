"""Draws speed_light.svg and speed_dark.svg, bars from the table in docs/evidence/speed.md."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
TABLE = HERE.parent / "evidence" / "speed.md"

# What the bar is called, how its row begins, against what, and which of the row's numbers it is.
BARS = (
    ("a train step under jit: MLP\nagainst torch.compile", "`jit` of a train step", "`torch.compile`", 0),
    ("… CNN with BatchNorm", "… CNN", "the same", 0),
    ("… GPT", "… GPT, four blocks", "the same", 0),
    ("… GPT, against torch eager", "MLP; CNN; GPT", "torch eager", 2),
    ("inference of ResNet50\nagainst torchvision", "`inference`", "torchvision eager", 0),
    ("a step of 64 small networks\nagainst a loop", "`jit` of `vmap`", "a loop of the step, eager", 0),
    ("gradients of 128 examples\nagainst a loop", "per-example gradients", "a loop of `gradient`", 0),
    ("shuffled batches of 784 floats\nagainst torch's DataLoader", "DataLoader", "torch's", 0),
    ("eager gradient, 10 ms\nagainst loss.backward()", "`gradient`, eager", "`zero_grad`", 0),
    ("update of 25 M parameters\nagainst torch's fused Adam", "`update`, donated", "torch's fused", 0),
)
THEMES = {
    "light": {"text": "#404040", "less": "#4063d8", "more": "#9a9a9a"},
    "dark": {"text": "#d0d0d0", "less": "#8aa2f2", "more": "#7a7a7a"},
}
Range = tuple[float, float]


def rows() -> list[list[str]]:
    """The cells of each row of the table."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def measured(table: list[list[str]], begins: str, against: str, which: int) -> Range:
    """The least and the largest ratio that a row reports, at two threads."""
    what, _, _, _, two_threads = next(
        r for r in table if r[0].startswith(begins) and r[1].startswith(against)
    )
    values = re.split(r"[;,]", two_threads)[which]
    ratios = [float(number) for number in re.findall(r"[\d.]+", values)]
    if not ratios:
        raise ValueError(f"{TABLE.name} has no ratio at two threads for {what}")
    return min(ratios), max(ratios)


def draw(theme: str) -> None:
    colours = THEMES[theme]
    table = rows()
    figure, axis = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for y, (name, *row) in enumerate(BARS):
        bar(axis, y, name, measured(table, *row), colours)
    axis.set_xscale("log", base=2)
    axis.set_xlim(1 / 400, 2.4)
    axis.set_ylim(len(BARS) - 0.4, -0.6)
    axis.axvline(1, color=colours["text"], linewidth=1)
    axis.set_yticks(range(len(BARS)), [name for name, *_ in BARS], fontsize=8, color=colours["text"])
    ticks = [2.0**-n for n in range(8, -2, -1)]
    axis.set_xticks(ticks, [f"{t:g}" if t >= 1 else f"1/{round(1 / t)}" for t in ticks])
    axis.tick_params(axis="x", colors=colours["text"], labelsize=8)
    axis.tick_params(axis="y", length=0)
    axis.minorticks_off()
    axis.spines[:].set_visible(False)
    axis.set_xlabel(
        "time over that of the other: to the left of 1, fluxlike is faster", fontsize=8, color=colours["text"]
    )
    figure.savefig(HERE / f"speed_{theme}.svg", transparent=True, metadata={"Date": None})
    plt.close(figure)


def bar(axis: Axes, y: int, name: str, ratio: Range, colours: dict[str, str]) -> None:
    """From 1 to the middle of what was measured, with the ends in numbers."""
    least, largest = ratio
    middle = (least * largest) ** 0.5
    axis.barh(y, middle - 1, 0.62, left=1, color=colours["less" if middle < 1 else "more"])
    text = f"{least:g}" if least == largest else f"{least:g} to {largest:g}"
    end, side, gap = (middle, "right", -4) if middle < 1 else (max(middle, 1.02), "left", 4)
    style = {"va": "center", "ha": side, "fontsize": 8, "color": colours["text"]}
    axis.annotate(text, (end, y), (gap, 0), textcoords="offset points", **style)


def main() -> None:
    matplotlib.rcParams["svg.hashsalt"] = "fluxlike"  # the same file every time
    for theme in THEMES:
        draw(theme)


if __name__ == "__main__":
    main()
