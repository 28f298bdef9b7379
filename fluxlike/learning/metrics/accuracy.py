"""The share of predictions that are right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxlike.losses.entries import check_floats

__all__ = ["accuracy"]


def accuracy(outputs: Tensor, targets: Tensor, /) -> Tensor:
    """The share of entries whose highest score is that of their class.

    Of two equal scores, the first counts. Every entry counts, those that a loss ignores too. NaN is taken for
    the highest score, and where one score stands for two classes, for the first class: that scores are finite
    is for the loss to tell.

    Args:
        outputs: scores (N, C, …), logits or probabilities, with the classes on axis 1; or of two classes the
            logits of the second, (N,) or (N, 1, …).
        targets: class indices (N, …), integers or booleans; or one-hot vectors or probabilities (N, C, …). Of
            two classes 0 and 1, of any dtype, in the shape of the outputs or without their axis 1.

    Returns:
        The mean over all entries, 0-d: float64 for outputs in float64, else float32.

    Raises:
        TypeError: no tensors, or outputs that are no floating numbers.
        ValueError: the shapes don't fit; nothing is broadcast.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.metrics.accuracy import accuracy
        >>> scores = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.5, 0.2]])
        >>> accuracy(scores, torch.tensor([0, 2]))
        tensor(0.5000)
    """
    check_floats("accuracy", outputs, targets)
    if outputs.ndim == 0 or outputs.numel() == 0:
        raise ValueError(f"accuracy: the outputs have the shape {tuple(outputs.shape)}; write (N, C, …)")
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        predicted, labels = _of_two(outputs, targets)
    else:
        predicted, labels = outputs.argmax(1), _labels(outputs, targets)
    return (predicted == labels).to(torch.promote_types(outputs.dtype, torch.float32)).mean()


accuracy.higher_is_better = True  # type: ignore[attr-defined]  # as those of torchmetrics declare it


def _of_two(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    rest = tuple(outputs.shape[:1] + outputs.shape[2:])
    if tuple(targets.shape) not in (tuple(outputs.shape), rest):
        raise ValueError(_unfit(outputs, targets, [tuple(outputs.shape), rest]))
    return (outputs > 0).reshape(rest), (targets > 0.5).reshape(rest)


def _labels(outputs: Tensor, targets: Tensor) -> Tensor:
    """The class of every entry."""
    rest = tuple(outputs.shape[:1] + outputs.shape[2:])
    if tuple(targets.shape) == tuple(outputs.shape):
        return targets.to(torch.uint8).argmax(1) if targets.dtype is torch.bool else targets.argmax(1)
    if tuple(targets.shape) != rest:
        raise ValueError(_unfit(outputs, targets, [rest, tuple(outputs.shape)]))
    if targets.is_floating_point() or targets.is_complex():
        raise ValueError(f"accuracy: class indices are integers, found {targets.dtype}; write targets.long()")
    return targets


def _unfit(outputs: Tensor, targets: Tensor, wanted: list[Any]) -> str:
    shapes = " or ".join(str(shape) for shape in dict.fromkeys(wanted))
    return (
        f"accuracy: the outputs have the shape {tuple(outputs.shape)}, so the targets have {shapes}; found "
        f"{tuple(targets.shape)}, and nothing is broadcast"
    )
