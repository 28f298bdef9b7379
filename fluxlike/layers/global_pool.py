"""Pooling to one number a channel: GlobalMaxPool and GlobalMeanPool."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluxlike.layers.checks import refuse_input
from fluxlike.trees.functor import functor

__all__ = ["GlobalMaxPool", "GlobalMeanPool"]


@functor
class GlobalMaxPool:
    """The largest value of each channel: (N, C, …) → (N, C).

    Raises:
        ValueError: from a call: no spatial axis.
        TypeError: from a call: no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.GlobalMaxPool()(torch.arange(6.0).reshape(1, 2, 3))
        tensor([[2., 5.]])
    """

    def __call__(self, x: Tensor) -> Tensor:
        axes = _spatial("GlobalMaxPool", x)
        return x.amax(axes)


@functor
class GlobalMeanPool:
    """The mean of each channel: (N, C, …) → (N, C).

    Raises:
        ValueError: from a call: no spatial axis.
        TypeError: from a call: no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.GlobalMeanPool()(torch.arange(6.0).reshape(1, 2, 3))
        tensor([[1., 4.]])
    """

    def __call__(self, x: Tensor) -> Tensor:
        axes = _spatial("GlobalMeanPool", x)
        return x.mean(axes)


def _spatial(name: str, x: Any) -> tuple[int, ...]:
    """The axes after the channels."""
    if not isinstance(x, Tensor) or x.ndim < 3:
        refuse_input(name, x, "(N, C, …) with at least one spatial axis")
    return tuple(range(2, x.ndim))
