"""Predictions as pictures, in figures that no window shows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxlike.learning.interpretation.images import Denormalise, pictures
from fluxlike.learning.interpretation.predictions import (
    Probabilities,
    class_names,
    class_probabilities,
    predicted,
)
from fluxlike.learning.interpretation.top_losses import TopLoss
from fluxlike.optional import optional

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_figure", "show_predictions", "top_losses_figure"]

_RIGHT, _WRONG = "#1a7f37", "#c1121f"
_LONGEST = 22  # characters of a name in a picture
_MOST_WITH_COUNTS = 30  # classes


def show_predictions(
    model: Any,
    batch: Any,
    /,
    classes: Sequence[Any] | None = None,
    *,
    k: int = 16,
    denormalise: Denormalise | None = None,
    probabilities: Probabilities = class_probabilities,
) -> Figure:
    """A batch of images with what a model says of them: right in green, wrong in red.

    Args:
        model: a model of classes, as in `interpret`. It runs in test mode.
        batch: a pair ``(x, y)`` of images (N, C, H, W) with 1 or 3 channels, floats from 0 to 1 or uint8, and
            classes (N,).
        classes: the names of all classes, in order. (default: their numbers)
        k: how many to show, the first ones of the batch. (default: 16)
        denormalise: the mean and the standard deviation, a number or one a channel, by which the images were
            normalised. (default: they were not)
        probabilities: as in `interpret`.

    Returns:
        A ``matplotlib.figure.Figure``; ``figure.savefig("predictions.png")`` writes it, a notebook shows it.

    Raises:
        ValueError: inputs that are no images, numbers that are no colours, or targets that are no classes.
        ImportError: matplotlib is not installed: ``pip install 'fluxlike[training]'``.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.interpretation.show import show_predictions
        >>> model = fl.Chain(fl.flatten, fl.Dense(16, 2))
        >>> batch = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 1])
        >>> figure = show_predictions(model, batch, ["cat", "dog"])
        >>> len([ax for ax in figure.axes if ax.images])
        3
    """
    if not isinstance(k, int) or k < 1:
        raise ValueError(f"k={k!r}: write a whole number of at least 1")
    found = predicted(model, batch, probabilities, "the batch")
    names = class_names(classes, found.probabilities.shape[1])
    drawn = pictures(found.x, denormalise)[:k]
    shares, guesses = (part.cpu() for part in found.probabilities.max(1))
    texts = [
        (f"{_short(names[guess])} {share:.0%}", f"true: {_short(names[true])}", guess == true)
        for guess, share, true in zip(guesses.tolist(), shares.tolist(), found.true.tolist(), strict=True)
    ]
    return _grid(drawn, texts[:k], f"{len(drawn)} of {len(found.true)} predictions")


def top_losses_figure(
    rows: Sequence[TopLoss], inputs: Sequence[Any], denormalise: Denormalise | None, /
) -> Figure:
    """The pictures of the largest losses, with what was predicted of each."""
    stacked = _stacked(inputs)
    texts = [
        (
            f"{_short(row.predicted)} {row.probability:.0%}",
            f"true: {_short(row.true)} {row.probability_of_true:.0%}\nloss {row.loss:.3g}, index {row.index}",
            row.true == row.predicted,
        )
        for row in rows
    ]
    return _grid(pictures(stacked, denormalise), texts, f"The {len(rows)} largest losses")


def _stacked(inputs: Sequence[Any]) -> Any:
    """Inputs as one batch, where they are tensors of one shape; else the first, to be named in the error."""
    if all(isinstance(x, Tensor) and x.shape == inputs[0].shape for x in inputs):
        return torch.stack(list(inputs))
    return inputs[0]


def confusion_figure(matrix: Tensor, classes: Sequence[str], /) -> Figure:
    """The confusion matrix: colours are shares of a row, numbers are counts, left out above 30 classes."""
    figure = _figure(*_matrix_size(classes))
    from matplotlib.colors import PowerNorm

    ax = figure.subplots()
    counts = matrix.double()
    shares = (counts / counts.sum(1, keepdim=True)).nan_to_num()
    image = ax.imshow(shares.numpy(), cmap="Blues", norm=PowerNorm(0.5, 0, 1))  # rare ones show too
    size = _font(len(classes))
    ticks, names = range(len(classes)), [_short(name) for name in classes]
    longest = max(map(len, names))
    ax.set_xticks(ticks, names, rotation=90 if longest * len(names) > 40 else 0, fontsize=size)
    ax.set_yticks(ticks, names, fontsize=size)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    right = int(matrix.diagonal().sum())
    ax.set_title(f"{right} of {int(matrix.sum())} right")
    figure.colorbar(image, ax=ax, label="share of the true class", fraction=0.046, pad=0.02)
    if len(classes) <= _MOST_WITH_COUNTS:
        _write_counts(ax, matrix, shares, size)
    return figure


def _write_counts(ax: Axes, matrix: Tensor, shares: Tensor, size: float) -> None:
    for i, row in enumerate(matrix.tolist()):
        for j, count in enumerate(row):
            if count:
                colour = "white" if shares[i, j] > 0.3 else "black"
                smaller = min(size, 3.6 * size / len(str(count)))
                ax.text(j, i, str(count), ha="center", va="center", color=colour, fontsize=smaller)


def _matrix_size(classes: Sequence[str]) -> tuple[float, float]:
    """Width and height in inches: a cell of a font's height, and room for the names."""
    cell = 0.42 if len(classes) <= _MOST_WITH_COUNTS else 0.14
    side = max(2.4, cell * len(classes))
    room = 0.08 * max(len(_short(name)) for name in classes)
    return side + room + 1.8, side + room + 1.0


def _font(count: int) -> float:
    return 9 if count <= _MOST_WITH_COUNTS else 7


def _grid(drawn: Tensor, texts: Sequence[tuple[str, str, bool]], title: str) -> Figure:
    """Pictures in rows, each with a coloured title and lines below it."""
    across = min(len(drawn), max(3, math.ceil(math.sqrt(len(drawn)))))
    down = math.ceil(len(drawn) / across)
    below = max(foot.count("\n") for _, foot, _ in texts) + 1  # lines
    figure = _figure(2.3 * across, (2.5 + 0.16 * below) * down + 0.4)
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(down, across, squeeze=False)
    for ax in axes.flat:
        ax.set_axis_off()
    for ax, picture, (head, foot, right) in zip(axes.flat, drawn, texts, strict=False):
        grey = picture.shape[-1] == 1
        shown = picture[..., 0] if grey else picture
        ax.imshow(shown.numpy(), cmap="gray" if grey else None, vmin=0, vmax=1)
        ax.set_title(head, fontsize=8.5, color=_RIGHT if right else _WRONG, fontweight="bold")
        ax.text(0.5, -0.04, foot, transform=ax.transAxes, ha="center", va="top", fontsize=8)
    return figure


def _figure(width: float, height: float) -> Figure:
    layout = optional("matplotlib.layout_engine", "a picture")
    engine = layout.ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.06)
    return optional("matplotlib.figure", "a picture").Figure(figsize=(width, height), layout=engine)


def _short(name: Any) -> str:
    """A name as it fits beside others; a dollar would start a formula."""
    text = str(name)
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
    return text.replace("$", r"\$")
