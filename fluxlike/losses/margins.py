"""Losses with a margin: what is far enough on the right side costs nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxlike.losses.entries import Agg, check_not_negative, check_pair, rounded_once

__all__ = ["hinge", "siamese_contrastive", "squared_hinge"]


def hinge(pred: Tensor, target: Tensor, /, *, agg: Agg = torch.mean) -> Tensor:
    """``agg(max(0, 1 - pred·target))``, for labels -1 and 1.

    The formula is Flux's ``hinge_loss``.

    Args:
        pred: scores, floating, of any shape.
        target: -1 or 1, of the same shape.
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.
        TypeError: `pred` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.hinge(torch.tensor([0.5, 2.0, -1.0]), torch.tensor([1, 1, 1]), agg=None)
        tensor([0.5000, 0.0000, 2.0000])
    """
    _check_signs("hinge", pred, target)
    return rounded_once(agg, _behind, pred, target)


def squared_hinge(pred: Tensor, target: Tensor, /, *, agg: Agg = torch.mean) -> Tensor:
    """``agg(max(0, 1 - pred·target)²)``, for labels -1 and 1.

    The formula is Flux's ``squared_hinge_loss``.

    Args:
        pred: scores, floating, of any shape.
        target: -1 or 1, of the same shape.
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.
        TypeError: `pred` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.squared_hinge(torch.tensor([0.5, 2.0, -1.0]), torch.tensor([1, 1, 1]), agg=None)
        tensor([0.2500, 0.0000, 4.0000])
    """
    _check_signs("squared_hinge", pred, target)
    return rounded_once(agg, lambda p, t: _behind(p, t).square(), pred, target)


def _behind(pred: Tensor, target: Tensor) -> Tensor:
    """How far a score is behind the margin."""
    return (1 - pred * target).clamp_min(0)


def _check_signs(name: str, pred: Any, target: Any) -> None:
    check_pair(name, pred, target, labels=True)
    if target.dtype == torch.bool:
        raise TypeError(
            f"{name}: the target is torch.bool, and labels are -1 and 1 here; write 2 * target.float() - 1"
        )


def siamese_contrastive(
    distance: Tensor, target: Tensor, /, *, margin: float = 1.0, agg: Agg = torch.mean
) -> Tensor:
    """``agg((1 - target)·distance² + target·max(0, margin - distance)²)``.

    (Hadsell et al. 2006, doi 10.1109/CVPR.2006.100, as in Flux.) It pulls together pairs that are alike,
    and pushes apart pairs that differ until they are the margin apart.

    Args:
        distance: of each pair, floating, of any shape.
        target: 0 for a pair that is alike, 1 for one that differs, of the same shape.
        margin: the distance from which on a pair that differs costs nothing, at least 0. (default: 1)
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, or the margin is negative.
        TypeError: `distance` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.siamese_contrastive(torch.tensor([0.5, 0.5]), torch.tensor([0, 1]), margin=2, agg=None)
        tensor([0.2500, 2.2500])
    """
    check_pair("siamese_contrastive", distance, target, labels=True)
    check_not_negative("siamese_contrastive", "margin", margin)

    def formula(distance: Tensor, target: Tensor) -> Tensor:
        missing = (margin - distance).clamp_min(0)
        return (1 - target) * distance.square() + target * missing.square()

    return rounded_once(agg, formula, distance, target)
