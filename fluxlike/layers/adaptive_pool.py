"""Pooling to a given size: AdaptiveMaxPool and AdaptiveMeanPool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.sizes import as_window, refuse_shape
from fluxlike.trees.functor import functor

__all__ = ["AdaptiveMaxPool", "AdaptiveMeanPool"]


class _AdaptivePool:
    """What the two adaptive pools share."""

    _kernels: ClassVar[dict[int, Callable[..., Tensor]]]

    def __init__(self, out_size: Sequence[int]) -> None:
        self.out_size = as_window("out_size", out_size, "(1, 1)")

    def __call__(self, x: Tensor) -> Tensor:
        n = len(self.out_size)
        if not isinstance(x, Tensor) or x.ndim != n + 2:
            refuse_shape(type(self).__name__, x, n)
        return self._kernels[n](x, self.out_size)

    def extra_repr(self) -> str:
        return f"{self.out_size}"


@functor(children=())
class AdaptiveMaxPool(_AdaptivePool):
    """Max pooling to a given size, whatever the size of the input.

    Args:
        out_size: the size of the output, one number an axis.

    Input: (N, C, …). Output: (N, C, \\*out_size).

    Raises:
        ValueError: a wrong number of axes; from a call, an input of another shape.
        TypeError: from a call: no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.AdaptiveMaxPool((2, 3))(torch.zeros(1, 5, 9, 7)).shape
        torch.Size([1, 5, 2, 3])
    """

    _kernels: ClassVar = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}


@functor(children=())
class AdaptiveMeanPool(_AdaptivePool):
    """Mean pooling to a given size, whatever the size of the input.

    Args:
        out_size: the size of the output, one number an axis.

    Input: (N, C, …). Output: (N, C, \\*out_size).

    Raises:
        ValueError: a wrong number of axes; from a call, an input of another shape.
        TypeError: from a call: no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.AdaptiveMeanPool((1, 1))(torch.ones(1, 5, 9, 7)).shape
        torch.Size([1, 5, 1, 1])
    """

    _kernels: ClassVar = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
