"""Losses of classes: a score or probability a class, against an index, a one-hot vector or probabilities.

The mean over entries is torch's in all cases (`Labels.loss`).
"""

from __future__ import annotations

import torch
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
from fluxlike.losses.labels import Labels, class_axis

__all__ = ["crossentropy", "focal", "kldivergence", "logitcrossentropy"]


def logitcrossentropy(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    dim: int = 1,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    agg: Agg = torch.mean,
) -> Tensor:
    """Cross-entropy between classes and unnormalised scores: ``-Σ target·log softmax(logits)``.

    All three reductions are those of ``torch.nn.functional.cross_entropy``: of losses of indices,
    ``agg=torch.mean`` is the weighted mean over the entries that are not ignored,
    ``Σ losses / Σ weight[target]``; every other `agg` gets the losses as they are: multiplied by their
    weights, and 0 where ignored.

    Args:
        logits: scores of shape (N, C, …).
        target: class indices of shape (N, …), integers from 0 to C-1; or probabilities (one-hot
            or soft labels) of shape (N, C, …).
        dim: the axis of the classes. (default: 1)
        weight: of each class, (C,). (default: 1)
        ignore_index: an index whose entries don't count, for indices as targets. (default: none, so
            every label is checked)
        label_smoothing: how much of each target is spread evenly over the classes, from 0 to 1.
            (default: 0)
        agg: reduces the losses of shape (N, …); None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes don't fit, or a label is out of range (on the CPU; a GPU reports it
            in its own way).
        TypeError: a prediction or weight that is no floating tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> fl.losses.logitcrossentropy(logits, torch.tensor([0, 1]))
        tensor(0.1269)
        >>> fl.losses.logitcrossentropy(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.1269)
        >>> fl.losses.logitcrossentropy(logits, torch.tensor([0, -100]), ignore_index=-100)
        tensor(0.1269)
    """
    labels = Labels("logitcrossentropy", logits, target, dim, weight, ignore_index, label_smoothing)
    return labels.loss(lambda x: torch.log_softmax(x, labels.dim), agg)


def crossentropy(
    probs: Tensor,
    target: Tensor,
    /,
    *,
    dim: int = 1,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    eps: float | None = None,
    agg: Agg = torch.mean,
) -> Tensor:
    """Cross-entropy between classes and probabilities: ``-Σ target·log(probs + eps)``.

    `logitcrossentropy` is stabler: prefer it, without a softmax at the end of the model.

    Args:
        probs: probabilities of shape (N, C, …).
        target: class indices of shape (N, …), or probabilities of shape (N, C, …).
        dim: the axis of the classes. (default: 1)
        weight: of each class, as in `logitcrossentropy`. (default: 1)
        ignore_index: as in `logitcrossentropy`. (default: none)
        label_smoothing: as in `logitcrossentropy`. (default: 0)
        eps: added inside the logarithm. (default: the spacing of numbers at 1: of float16 for
            float16, else of the dtype computed in)
        agg: reduces the losses of shape (N, …); None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: as `logitcrossentropy`, and values that are no probabilities (on the CPU).
        TypeError: as `logitcrossentropy`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.crossentropy(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
        tensor(0.6931)
    """
    labels = Labels("crossentropy", probs, target, dim, weight, ignore_index, label_smoothing)
    check_probabilities("crossentropy", probs, "logitcrossentropy")
    tiny = spacing(eps, probs, target)
    return labels.loss(lambda p: torch.log(p + tiny), agg)


def focal(
    probs: Tensor,
    target: Tensor,
    /,
    *,
    dim: int = 1,
    gamma: float = 2.0,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    eps: float | None = None,
    agg: Agg = torch.mean,
) -> Tensor:
    """Focal loss: ``-Σ target·(1 - probs)^gamma·log(probs + eps)``.

    (Lin et al. 2017, arXiv 1708.02002, as in Flux.) It passes over what is easy: with ``gamma=0`` it is
    `crossentropy`. The paper's α is a `weight` of the classes.

    Args:
        probs: probabilities of shape (N, C, …).
        target: class indices of shape (N, …), or probabilities of shape (N, C, …).
        dim: the axis of the classes. (default: 1)
        gamma: how fast a probability near 1 stops to count, at least 0. (default: 2)
        weight: of each class, as in `logitcrossentropy`. (default: 1)
        ignore_index: as in `logitcrossentropy`. (default: none)
        eps: added inside the logarithm. (default: the spacing of numbers at 1: of float16 for
            float16, else of the dtype computed in)
        agg: reduces the losses of shape (N, …); None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: as `logitcrossentropy`, values that are no probabilities (on the CPU), or a negative
            `gamma`.
        TypeError: as `logitcrossentropy`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.focal(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
        tensor(0.1733)
    """
    labels = Labels("focal", probs, target, dim, weight, ignore_index)
    check_probabilities("focal", probs, f"torch.softmax(logits, {dim})")
    tiny = spacing(eps, probs, target)
    check_not_negative("focal", "gamma", gamma)
    return labels.loss(lambda p: focus(p, gamma) * torch.log(p + tiny), agg)


def kldivergence(
    probs: Tensor, target: Tensor, /, *, dim: int = 1, eps: float | None = None, agg: Agg = torch.mean
) -> Tensor:
    """Kullback-Leibler divergence: ``Σ target·log target - Σ target·log(probs + eps)``.

    (Kullback & Leibler 1951, doi 10.1214/aoms/1177729694, as in Flux.) The mean is over distributions:
    torch's ``reduction="batchmean"``.

    Args:
        probs: probabilities of shape (N, C, …).
        target: probabilities of the same shape.
        dim: the axis along which they add up to 1. (default: 1)
        eps: added inside the second logarithm. (default: the spacing of numbers at 1: of float16 for
            float16, else of the dtype computed in)
        agg: reduces the divergences of shape (N, …); None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, or have no such axis, or `probs` has values that are no
            probabilities (on the CPU).
        TypeError: one of them is no floating tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> certain, even = torch.eye(2), torch.full((2, 2), 0.5)
        >>> fl.losses.kldivergence(even, certain)
        tensor(0.6931)
    """
    check_pair("kldivergence", probs, target)
    axis = class_axis("kldivergence", probs, dim)
    check_probabilities("kldivergence", probs, f"torch.softmax(logits, {dim}), or log_probs.exp()")
    tiny = spacing(eps, probs, target)

    def formula(probs: Tensor, target: Tensor) -> Tensor:
        # 0·log 0 is 0 and, where the target is differentiated, of a finite derivative.
        own = torch.log(torch.where(target == 0, 1, target))
        return (target * (own - torch.log(probs + tiny))).sum(axis)

    return rounded_once(agg, formula, probs, target)
