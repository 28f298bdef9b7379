"""Losses of yes or no: a prediction an entry, with targets from 0 to 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.losses.entries import (
    Agg,
    check_not_negative,
    check_pair,
    check_probabilities,
    rounded_once,
    spacing,
)
from fluxlike.losses.focus import focus

__all__ = ["binary_focal", "binarycrossentropy", "logitbinarycrossentropy"]


def binarycrossentropy(
    probs: Tensor, target: Tensor, /, *, eps: float | None = None, agg: Agg = torch.mean
) -> Tensor:
    """``-target·log(probs + eps) - (1 - target)·log(1 - probs + eps)``.

    The formula is Flux's. `logitbinarycrossentropy` is stabler: prefer it, without a sigmoid at the end
    of the model.

    Args:
        probs: probabilities, floating, of any shape.
        target: labels or numbers from 0 to 1, of the same shape.
        eps: added inside the logarithms. (default: the spacing of numbers at 1: of float16 for
            float16, else of the dtype computed in)
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, or `probs` has values that are no probabilities (on the CPU).
        TypeError: `probs` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.binarycrossentropy(torch.tensor([0.5]), torch.tensor([1.0]))
        tensor(0.6931)
    """
    check_pair("binarycrossentropy", probs, target, labels=True)
    check_probabilities("binarycrossentropy", probs, "logitbinarycrossentropy", above=0)
    tiny = spacing(eps, probs, target)

    def formula(probs: Tensor, target: Tensor) -> Tensor:
        return -target * torch.log(probs + tiny) - (1 - target) * torch.log(1 - probs + tiny)

    return rounded_once(agg, formula, probs, target)


def logitbinarycrossentropy(
    logits: Tensor, target: Tensor, /, *, pos_weight: float | Tensor | None = None, agg: Agg = torch.mean
) -> Tensor:
    """`binarycrossentropy` of ``sigmoid(logits)``, computed stably, as torch does.

    Args:
        logits: scores, floating, of any shape.
        target: labels or numbers from 0 to 1, of the same shape.
        pos_weight: a factor of what a 1 costs, to balance rare ones: a number, or a tensor of shape (C,)
            for logits of shape (N, C, …). (default: 1)
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, or `pos_weight` has another shape.
        TypeError: `logits` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.logitbinarycrossentropy(torch.tensor([0.0]), torch.tensor([1.0]))
        tensor(0.6931)
    """
    check_pair("logitbinarycrossentropy", logits, target, labels=True)

    def formula(logits: Tensor, target: Tensor) -> Tensor:
        weight = None if pos_weight is None else _by_class(logits, pos_weight)
        return F.binary_cross_entropy_with_logits(logits, target, reduction="none", pos_weight=weight)

    return rounded_once(agg, formula, logits, target)


def _by_class(logits: Tensor, weight: float | Tensor) -> Tensor:
    """The weight of each class, in a shape that meets the logits on axis 1."""
    if not isinstance(weight, Tensor):
        return logits.new_tensor(weight)
    if weight.ndim == 0:
        return weight.to(logits.dtype)
    if logits.ndim < 2 or weight.shape != logits.shape[1:2]:
        wanted = f"({logits.shape[1]},), one a class, or one number" if logits.ndim > 1 else "one number"
        raise ValueError(
            f"logitbinarycrossentropy: pos_weight has the shape {tuple(weight.shape)} beside logits of "
            f"shape {tuple(logits.shape)}; write {wanted}"
        )
    return weight.to(logits.dtype).reshape(-1, *(1,) * (logits.ndim - 2))


def binary_focal(
    probs: Tensor, target: Tensor, /, *, gamma: float = 2.0, eps: float | None = None, agg: Agg = torch.mean
) -> Tensor:
    """Focal loss: ``-(1 - p)^gamma·log(p + eps)`` with p the probability given to the target.

    (Lin et al. 2017, arXiv 1708.02002.) It passes over what is easy: with ``gamma=0`` it is
    `binarycrossentropy`. ``p = target·probs + (1 - target)·(1 - probs)``, as in Flux.

    Args:
        probs: probabilities, floating, of any shape.
        target: labels or numbers from 0 to 1, of the same shape.
        gamma: how fast a probability near 1 stops to count, at least 0. (default: 2)
        eps: added inside the logarithm. (default: the spacing of numbers at 1: of float16 for
            float16, else of the dtype computed in)
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, `probs` has values that are no probabilities (on the CPU), or
            `gamma` is negative.
        TypeError: `probs` is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.binary_focal(torch.tensor([0.27, 0.5, 0.27]), torch.tensor([0.0, 1.0, 0.0]))
        tensor(0.0731)
    """
    check_pair("binary_focal", probs, target, labels=True)
    check_probabilities("binary_focal", probs, "torch.sigmoid(logits)", above=0)
    tiny = spacing(eps, probs, target)
    check_not_negative("binary_focal", "gamma", gamma)

    def formula(probs: Tensor, target: Tensor) -> Tensor:
        p = target * probs + (1 - target) * (1 - probs)
        return -focus(p, gamma) * torch.log(p + tiny)

    return rounded_once(agg, formula, probs, target)
