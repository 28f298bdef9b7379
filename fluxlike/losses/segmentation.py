"""Losses of overlap: how much of two masks is in both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxlike.losses.entries import Agg, check_not_negative, check_pair, rounded_once

__all__ = ["dice_coeff", "tversky"]

Axes = int | Sequence[int] | None


def dice_coeff(
    probs: Tensor, target: Tensor, /, *, dim: Axes = None, smooth: float = 1.0, agg: Agg = torch.mean
) -> Tensor:
    """``1 - (2·Σ probs·target + smooth) / (Σ probs² + Σ target² + smooth)``.

    (Milletari et al. 2016, arXiv 1606.04797, as Flux's ``dice_coeff_loss``.)

    Args:
        probs: probabilities, floating, of any shape.
        target: a mask or numbers from 0 to 1, of the same shape.
        dim: the axes to add up over, such as (2, 3) for one coefficient an image and class, which `agg`
            then reduces. (default: all, so one coefficient of the whole batch, as in Flux)
        smooth: at least 0; above 0 two empty masks agree, with 0 their coefficient is NaN. (default: 1)
        agg: reduces the coefficients; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, or `smooth` is negative.
        IndexError: there is no such axis.
        TypeError: `probs` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.dice_coeff(torch.tensor([0.0, 1.4, 0.5, 1.2]), torch.tensor([1.0, 0.5, 0.3, 2.4]))
        tensor(0.2800)
    """
    check_pair("dice_coeff", probs, target, labels=True)
    check_not_negative("dice_coeff", "smooth", smooth)
    axes = _axes(probs, dim)

    def formula(probs: Tensor, target: Tensor) -> Tensor:
        both = (probs * target).sum(axes)
        each = (probs.square() + target.square()).sum(axes)
        return 1 - (2 * both + smooth) / (each + smooth)

    return rounded_once(agg, formula, probs, target)


def tversky(
    probs: Tensor,
    target: Tensor,
    /,
    *,
    dim: Axes = None,
    beta: float = 0.7,
    smooth: float = 1.0,
    agg: Agg = torch.mean,
) -> Tensor:
    """``1 - (TP + smooth) / (TP + (1 - beta)·FP + beta·FN + smooth)``, of soft counts.

    (Salehi et al. 2017, arXiv 1706.05721.) TP is ``Σ probs·target``, FP ``Σ probs·(1 - target)`` and FN
    ``Σ (1 - probs)·target``. A larger `beta` weighs what was missed, as the paper and Flux's documentation
    say; Flux's code has `beta` and ``1 - beta`` the other way round.

    Args:
        probs: probabilities, floating, of any shape.
        target: a mask or numbers from 0 to 1, of the same shape.
        dim: the axes to add up over, as in `dice_coeff`. (default: all)
        beta: the weight of false negatives, from 0 to 1. (default: 0.7)
        smooth: at least 0; above 0 two empty masks agree, with 0 their index is NaN. (default: 1)
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, `beta` is outside [0, 1], or `smooth` is negative.
        IndexError: there is no such axis.
        TypeError: `probs` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> mask = torch.tensor([1.0, 1.0, 0.0, 0.0])
        >>> fl.losses.tversky(torch.tensor([1.0, 0.0, 0.0, 0.0]), mask)  # one missed
        tensor(0.2593)
        >>> fl.losses.tversky(torch.tensor([1.0, 1.0, 1.0, 0.0]), mask)  # one too many
        tensor(0.0909)
    """
    check_pair("tversky", probs, target, labels=True)
    check_not_negative("tversky", "smooth", smooth)
    if not 0 <= beta <= 1:
        raise ValueError(f"tversky: beta={beta}; write a number from 0 to 1")
    axes = _axes(probs, dim)

    def formula(probs: Tensor, target: Tensor) -> Tensor:
        hit = (probs * target).sum(axes)
        extra = (probs * (1 - target)).sum(axes)
        missed = ((1 - probs) * target).sum(axes)
        return 1 - (hit + smooth) / (hit + (1 - beta) * extra + beta * missed + smooth)

    return rounded_once(agg, formula, probs, target)


def _axes(probs: Tensor, dim: Axes) -> tuple[int, ...]:
    if dim is None:
        return tuple(range(probs.ndim))
    return (dim,) if isinstance(dim, int) else tuple(dim)
