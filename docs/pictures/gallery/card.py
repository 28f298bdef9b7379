"""The form of a card's picture: its size, its colours on light and dark pages, and how it is written."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image

ROOT = Path(__file__).parents[3]
GREY = "#808080"  # readable on white and on black
BLUE, ORANGE, GREEN, RED = COLOURS = "#5b7fe8", "#e08a3c", "#3aa17e", "#d9566b"
MOST_BYTES = 40_000

matplotlib.rcParams.update(
    {
        "figure.figsize": (4.8, 3.2),
        "figure.dpi": 100,
        "font.size": 14,
        "axes.titlesize": 14,
        "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "lines.linewidth": 2.5,
        **dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none"),
        **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), GREY),
        **dict.fromkeys(("xtick.color", "ytick.color", "legend.labelcolor"), GREY),
    }
)


def plot(**settings):
    """A picture of one pair of axes."""
    figure, axis = plt.subplots(layout="constrained")
    axis.set(**settings)
    return figure, axis


def tiles(rows, columns):
    """A picture of many small ones, side by side without axes: the figure, and its axes (rows, columns)."""
    figure, axes = plt.subplots(rows, columns, squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    return figure, axes


def show(axis, image, **settings):
    """An image (1, H, W) from 0 to 1, dark on light as ink is, or one (3, H, W) in colour."""
    if image.shape[0] == 1:
        axis.imshow(image[0], **{"cmap": "gray_r", "vmin": 0, "vmax": 1, **settings})
    else:
        axis.imshow(image.permute(1, 2, 0).clamp(0, 1), interpolation="nearest", **settings)


def page(text, title):
    """What a network wrote, as it would stand in a terminal."""
    figure, axis = plt.subplots(layout="constrained")
    axis.set_axis_off()
    axis.text(0, 1, title, va="top", color=BLUE, fontsize=14)
    axis.text(0, 0.86, text, va="top", family="monospace", fontsize=11.5, linespacing=1.4)
    return figure


def said(example, *options, launcher=()):
    """What an example prints when it runs to its end by itself."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, *launcher, example.__file__, *options]
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


def write(figure, path):
    """A PNG file of few colours, where it would be too large with all of them."""
    figure.savefig(path, transparent=True)
    plt.close(figure)
    if path.stat().st_size > MOST_BYTES:
        Image.open(path).quantize(64, Image.Quantize.FASTOCTREE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:,} bytes; a page of cards wants {MOST_BYTES:,}")
