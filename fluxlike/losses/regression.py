"""Losses of numbers: how far a prediction is from its target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.losses.entries import Agg, check_pair, rounded_once, spacing

__all__ = ["huber", "mae", "mse", "msle", "poisson"]


def mse(pred: Tensor, target: Tensor, /, *, agg: Agg = torch.mean) -> Tensor:
    """Squared error: ``agg((pred - target)²)``.

    Args:
        pred: floating, of any shape.
        target: floating, of the same shape.
        agg: reduces the errors; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.
        TypeError: one of them is no floating tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.mse(torch.tensor([0.9, 0.1, 0.1, 0.9]), torch.tensor([1.0, 1, 0, 0]))
        tensor(0.4100)
    """
    check_pair("mse", pred, target)
    return rounded_once(agg, lambda p, t: (p - t).square(), pred, target)


def mae(pred: Tensor, target: Tensor, /, *, agg: Agg = torch.mean) -> Tensor:
    """Absolute error: ``agg(|pred - target|)``.

    Args:
        pred: floating, of any shape.
        target: floating, of the same shape.
        agg: reduces the errors; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.
        TypeError: one of them is no floating tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.mae(torch.tensor([0.9, 0.1, 0.1, 0.9]), torch.tensor([1.0, 1, 0, 0]))
        tensor(0.5000)
    """
    check_pair("mae", pred, target)
    return rounded_once(agg, lambda p, t: (p - t).abs(), pred, target)


def msle(pred: Tensor, target: Tensor, /, *, eps: float | None = None, agg: Agg = torch.mean) -> Tensor:
    """Squared logarithmic error: ``agg((log(pred + eps) - log(target + eps))²)``.

    It compares ratios, for quantities over several orders of magnitude. The formula is Flux's; with
    ``eps=1`` it is that of scikit-learn and TorchMetrics.

    Args:
        pred: floating, of any shape, above -eps.
        target: floating, of the same shape, above -eps.
        eps: added inside the logarithms. (default: the spacing of numbers at 1: of float16 for
            float16, else of the dtype computed in)
        agg: reduces the errors; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.
        TypeError: one of them is no floating tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.msle(torch.tensor([1.1, 2.2, 3.3]), torch.tensor([1.0, 2.0, 3.0]))
        tensor(0.0091)
    """
    check_pair("msle", pred, target)
    tiny = spacing(eps, pred, target)

    def formula(pred: Tensor, target: Tensor) -> Tensor:
        return (torch.log(pred + tiny) - torch.log(target + tiny)).square()

    return rounded_once(agg, formula, pred, target)


def huber(pred: Tensor, target: Tensor, /, *, delta: float = 1.0, agg: Agg = torch.mean) -> Tensor:
    """Huber's loss: ``e²/2`` where ``|e| ≤ delta``, else ``delta·(|e| - delta/2)``.

    (Huber 1964, doi 10.1214/aoms/1177703732.)

    Args:
        pred: floating, of any shape.
        target: floating, of the same shape.
        delta: where it turns linear, above 0. (default: 1)
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ, or `delta` is not positive.
        TypeError: one of them is no floating tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.huber(torch.tensor([0.9, 0.1, 0.1, 0.9]), torch.tensor([1.0, 1, 0, 0]))
        tensor(0.2050)
    """
    check_pair("huber", pred, target)
    if not delta > 0:
        raise ValueError(f"huber: delta={delta}; write a number above 0")

    def formula(pred: Tensor, target: Tensor) -> Tensor:
        return F.huber_loss(pred, target, reduction="none", delta=delta)

    return rounded_once(agg, formula, pred, target)


def poisson(pred: Tensor, target: Tensor, /, *, eps: float | None = None, agg: Agg = torch.mean) -> Tensor:
    """Negative log-likelihood of counts, up to a constant: ``agg(pred - target·log(pred + eps))``.

    The formula is Flux's ``poisson_loss``, which has no `eps`, and torch's ``poisson_nll_loss`` with
    ``log_input=False``, where `eps` is 1e-8.

    Args:
        pred: the expected counts, floating and not negative, of any shape.
        target: the counts that were found, whole or floating, of the same shape.
        eps: added inside the logarithm. (default: the spacing of numbers at 1: of float16 for
            float16, else of the dtype computed in)
        agg: reduces the losses; None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: the shapes differ.
        TypeError: the prediction is no floating tensor, or the target no tensor of real numbers.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.losses.poisson(torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.1, 0.2, 0.3]))
        tensor(0.6278)
    """
    check_pair("poisson", pred, target, labels=True)
    tiny = spacing(eps, pred, target)

    def formula(pred: Tensor, target: Tensor) -> Tensor:
        return pred - target * torch.log(pred + tiny)

    return rounded_once(agg, formula, pred, target)
