"""Losses: functions of prediction and target, reduced by `agg`.

Batch first, classes on axis 1, as in torch. Shapes must agree: nothing is broadcast. `agg` is the
mean unless said otherwise; ``agg=torch.sum`` adds up, ``agg=fl.identity`` keeps one loss an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "binarycrossentropy", "crossentropy", "huber", "logitbinarycrossentropy", "logitcrossentropy",
    "mae", "mse",
]  # fmt: skip

Agg = Callable[[Tensor], Any]


def mse(pred: Tensor, target: Tensor, /, *, agg: Agg = torch.mean) -> Any:
    """Squared error: ``agg((pred - target)²)``.

    Args:
        pred: a tensor of any shape.
        target: a tensor of the same shape.
        agg: reduces the errors. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.mse(torch.tensor([0.9, 0.1, 0.1, 0.9]), torch.tensor([1.0, 1, 0, 0]))
        tensor(0.4100)
    """
    target = _same_shape("mse", pred, target)
    return agg((pred - target).square())


def mae(pred: Tensor, target: Tensor, /, *, agg: Agg = torch.mean) -> Any:
    """Absolute error: ``agg(|pred - target|)``.

    Args:
        pred: a tensor of any shape.
        target: a tensor of the same shape.
        agg: reduces the errors. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.mae(torch.tensor([0.9, 0.1, 0.1, 0.9]), torch.tensor([1.0, 1, 0, 0]))
        tensor(0.5000)
    """
    target = _same_shape("mae", pred, target)
    return agg((pred - target).abs())


def huber(pred: Tensor, target: Tensor, /, *, delta: float = 1.0, agg: Agg = torch.mean) -> Any:
    """Huber's loss (1964): ``e²/2`` where ``|e| ≤ delta``, else ``delta·(|e| - delta/2)``.

    Args:
        pred: a tensor of any shape.
        target: a tensor of the same shape.
        delta: where it turns linear. (default: 1)
        agg: reduces the losses. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.huber(torch.tensor([0.9, 0.1, 0.1, 0.9]), torch.tensor([1.0, 1, 0, 0]))
        tensor(0.2050)
    """
    target = _same_shape("huber", pred, target)
    return agg(F.huber_loss(pred, target, reduction="none", delta=delta))


def logitcrossentropy(logits: Tensor, target: Tensor, /, *, dim: int = 1, agg: Agg = torch.mean) -> Any:
    """Cross-entropy between classes and unnormalised scores: ``-Σ target·log softmax(logits)``.

    Args:
        logits: scores of shape (N, C, …).
        target: class indices of shape (N, …), integers from 0 to C-1; or probabilities (one-hot
            or soft labels) of shape (N, C, …).
        dim: the axis of the classes. (default: 1)
        agg: reduces the losses of shape (N, …). (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes don't fit, or a label is out of range (on the CPU; a GPU reports it
            in its own way).

    Example:
        >>> import torch, fluxlike as fl
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
        >>> fl.losses.logitcrossentropy(logits, torch.tensor([0, 1]))
        tensor(0.1269)
        >>> fl.losses.logitcrossentropy(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor(0.1269)
    """
    dim, by_index = _classes("logitcrossentropy", logits, target, dim)
    if by_index:
        return agg(_checked_labels("logitcrossentropy", F.cross_entropy, logits, target, dim))
    return agg(-(target * F.log_softmax(logits, dim)).sum(dim))


def crossentropy(
    probs: Tensor, target: Tensor, /, *, dim: int = 1, eps: float | None = None, agg: Agg = torch.mean
) -> Any:
    """Cross-entropy between classes and probabilities: ``-Σ target·log(probs + eps)``.

    `logitcrossentropy` is stabler: prefer it, without a softmax at the end of the model.

    Args:
        probs: probabilities of shape (N, C, …).
        target: class indices of shape (N, …), or probabilities of shape (N, C, …).
        dim: the axis of the classes. (default: 1)
        eps: added inside the logarithm. (default: the spacing of numbers at 1 in the dtype)
        agg: reduces the losses of shape (N, …). (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: as `logitcrossentropy`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.crossentropy(torch.tensor([[0.5, 0.5]]), torch.tensor([1]))
        tensor(0.6931)
    """
    dim, by_index = _classes("crossentropy", probs, target, dim)
    logs = torch.log(probs + (torch.finfo(probs.dtype).eps if eps is None else eps))
    if by_index:
        return agg(_checked_labels("crossentropy", F.nll_loss, logs, target, dim))
    return agg(-(target * logs).sum(dim))


def binarycrossentropy(
    probs: Tensor, target: Tensor, /, *, eps: float | None = None, agg: Agg = torch.mean
) -> Any:
    """``-target·log(probs + eps) - (1 - target)·log(1 - probs + eps)``.

    Args:
        probs: probabilities, a tensor of any shape.
        target: numbers from 0 to 1 of the same shape.
        eps: added inside the logarithms. (default: the spacing of numbers at 1 in the dtype)
        agg: reduces the losses. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.binarycrossentropy(torch.tensor([0.5]), torch.tensor([1.0]))
        tensor(0.6931)
    """
    target = _same_shape("binarycrossentropy", probs, target)
    tiny = torch.finfo(probs.dtype).eps if eps is None else eps
    return agg(-target * torch.log(probs + tiny) - (1 - target) * torch.log(1 - probs + tiny))


def logitbinarycrossentropy(logits: Tensor, target: Tensor, /, *, agg: Agg = torch.mean) -> Any:
    """`binarycrossentropy` of ``sigmoid(logits)``, computed stably.

    Args:
        logits: scores, a tensor of any shape.
        target: numbers from 0 to 1 of the same shape.
        agg: reduces the losses. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.logitbinarycrossentropy(torch.tensor([0.0]), torch.tensor([1.0]))
        tensor(0.6931)
    """
    target = _same_shape("logitbinarycrossentropy", logits, target)
    return agg(F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none"))


def _same_shape(name: str, pred: Any, target: Any) -> Tensor:
    """The target, of the shape of the prediction; true and false as 1 and 0."""
    for what, x in (("prediction", pred), ("target", target)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: the {what} is a {type(x).__name__}; write a tensor")
    if pred.shape != target.shape:
        raise ValueError(
            f"{name}: the prediction has the shape {tuple(pred.shape)}, the target "
            f"{tuple(target.shape)}; nothing is broadcast, so reshape one, for example with "
            ".squeeze(1) or .unsqueeze(1)"
        )
    return target.to(pred.dtype) if target.dtype == torch.bool else target


def _classes(name: str, scores: Any, target: Any, dim: int) -> tuple[int, bool]:
    """The axis of the classes, and whether the target holds indices."""
    for what, x in (("prediction", scores), ("target", target)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: the {what} is a {type(x).__name__}; write a tensor")
    if scores.ndim < 2 or not -scores.ndim <= dim < scores.ndim:
        raise ValueError(
            f"{name}: the scores have the shape {tuple(scores.shape)}; write (N, C, …) with the classes "
            f"on axis {dim}"
        )
    dim %= scores.ndim
    if target.shape == scores.shape:
        return dim, False
    rest = (*scores.shape[:dim], *scores.shape[dim + 1 :])
    whole = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    if tuple(target.shape) == rest and whole:
        return dim, True
    raise ValueError(
        f"{name}: the scores have the shape {tuple(scores.shape)} with classes on axis {dim}, so the target "
        f"is either integer labels of shape {rest} or probabilities of shape {tuple(scores.shape)}; found "
        f"{target.dtype} of shape {tuple(target.shape)}"
    )


def _checked_labels(name: str, loss: Any, scores: Tensor, target: Tensor, dim: int) -> Tensor:
    try:
        # A label of -100 must not be passed over silently, as torch does: no label is ignored.
        return loss(scores.movedim(dim, 1), target.long(), reduction="none", ignore_index=-(2**62))
    except IndexError:
        raise ValueError(
            f"{name}: labels run from 0 to {scores.shape[dim] - 1} for {scores.shape[dim]} classes, found "
            f"{int(target.min())} to {int(target.max())}"
        ) from None
