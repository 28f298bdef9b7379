"""Labels that are less certain than one-hot ones."""

from __future__ import annotations

import torch
from torch import Tensor

from fluxlike._private.tracing import readable
from fluxlike.losses.labels import class_axis

__all__ = ["label_smoothing"]


def label_smoothing(target: Tensor, alpha: float, /, *, dim: int | None = 1) -> Tensor:
    """Labels that are less certain: ``(1 - alpha)·target + alpha / C``.

    (Szegedy et al. 2016, arXiv 1512.00567.) For class indices, ``logitcrossentropy(…,
    label_smoothing=alpha)`` computes the same without the one-hot labels.

    Args:
        target: one-hot or soft labels of shape (N, C, …), or (C,) for one; with ``dim=None`` binary
            labels of any shape.
        alpha: how much is spread over the C classes, above 0 and below 1.
        dim: the axis of the classes; None for binary labels, which move towards a half, as C = 2.
            (default: 1)

    Returns:
        Labels of the same shape: floating, in the default dtype for labels that were whole.

    Raises:
        ValueError: `alpha` is not between 0 and 1, there is no such axis, or a single vector does not add
            up to 1.
        TypeError: the target is no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.label_smoothing(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 0.2)
        tensor([[0.9000, 0.1000],
                [0.1000, 0.9000]])
    """
    if not isinstance(target, Tensor) or target.is_complex():
        found = target.dtype if isinstance(target, Tensor) else f"a {type(target).__name__}"
        raise TypeError(f"label_smoothing: the target is {found}; write a tensor of one-hot labels")
    if not 0 < alpha < 1:
        raise ValueError(f"label_smoothing: alpha={alpha}; write a number above 0 and below 1")
    if not target.is_floating_point():
        target = target.to(torch.get_default_dtype())
    return target * (1 - alpha) + alpha / _number_of_classes(target, dim)


def _number_of_classes(target: Tensor, dim: int | None) -> int:
    if dim is None:
        return 2
    if target.ndim != 1:
        return target.shape[class_axis("label_smoothing", target, dim)]
    if readable(target) and abs(float(target.sum()) - 1) > 0.01:
        raise ValueError(
            f"label_smoothing: the {target.shape[0]} entries of one vector are one label, and add up to "
            f"{float(target.sum()):g} instead of 1; for binary labels write dim=None, for class indices "
            "logitcrossentropy(…, label_smoothing=alpha)"
        )
    return target.shape[0]
