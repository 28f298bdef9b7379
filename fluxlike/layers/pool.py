"""Pooling: windows, adaptive and global."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.conv import as_sizes, axes_text, sizes_text
from fluxlike.trees.functor import functor

__all__ = [
    "AdaptiveMaxPool", "AdaptiveMeanPool", "GlobalMaxPool", "GlobalMeanPool", "MaxPool", "MeanPool",
]  # fmt: skip


def _check(layer: Any, x: Any, n: int) -> None:
    if not isinstance(x, Tensor) or x.ndim != n + 2:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{type(layer).__name__} takes the shape (N, C, {axes_text(n)}), found {found}")


class _WindowPool:
    """What the two pools over windows share."""

    _kernels: ClassVar[dict[int, Callable[..., Tensor]]]

    def __init__(
        self,
        window: Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        pad: int | Sequence[int] = 0,
    ) -> None:
        if isinstance(window, int) or len(window) not in (1, 2, 3):
            raise ValueError(f"window={window!r}: write one number an axis, such as (2, 2)")
        n = len(window)
        self.window = tuple(window)
        self.stride = self.window if stride is None else as_sizes("stride", stride, n)
        self.pad = as_sizes("pad", pad, n)

    def __call__(self, x: Tensor) -> Tensor:
        n = len(self.window)
        _check(self, x, n)
        return self._kernels[n](x, self.window, self.stride, self.pad)

    def extra_repr(self) -> str:
        return (
            f"{self.window}"
            + sizes_text("stride", self.stride, self.window)
            + sizes_text("pad", self.pad, (0,) * len(self.window))
        )


@functor(children=())
class MaxPool(_WindowPool):
    """The largest value of every window.

    Args:
        window: its size, one number an axis.
        stride: its step. (default: the window)
        pad: how far it reaches beyond each end, at most half the window. (default: 0)

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: a wrong number of axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.MaxPool((2, 2))(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """

    _kernels: ClassVar = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@functor(children=())
class MeanPool(_WindowPool):
    """The mean of every window; padding counts as zeros.

    Args:
        window: its size, one number an axis.
        stride: its step. (default: the window)
        pad: how far it reaches beyond each end, at most half the window. (default: 0)

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: a wrong number of axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.MeanPool((2,))(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]))
        tensor([[[2., 6.]]])
    """

    _kernels: ClassVar = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _AdaptivePool:
    """What the two adaptive pools share."""

    _kernels: ClassVar[dict[int, Callable[..., Tensor]]]

    def __init__(self, out_size: Sequence[int]) -> None:
        if isinstance(out_size, int) or len(out_size) not in (1, 2, 3):
            raise ValueError(f"out_size={out_size!r}: write one number an axis, such as (1, 1)")
        self.out_size = tuple(out_size)

    def __call__(self, x: Tensor) -> Tensor:
        n = len(self.out_size)
        _check(self, x, n)
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
        ValueError: a wrong number of axes.

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
        ValueError: a wrong number of axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.AdaptiveMeanPool((1, 1))(torch.ones(1, 5, 9, 7)).shape
        torch.Size([1, 5, 1, 1])
    """

    _kernels: ClassVar = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def _spatial(name: str, x: Any) -> tuple[int, ...]:
    if not isinstance(x, Tensor) or x.ndim < 3:
        found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} takes the shape (N, C, …) with at least one spatial axis, found {found}")
    return tuple(range(2, x.ndim))


@functor
class GlobalMaxPool:
    """The largest value of each channel: (N, C, …) → (N, C).

    Raises:
        ValueError: from a call: no spatial axis.

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

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.GlobalMeanPool()(torch.arange(6.0).reshape(1, 2, 3))
        tensor([[1., 4.]])
    """

    def __call__(self, x: Tensor) -> Tensor:
        axes = _spatial("GlobalMeanPool", x)
        return x.mean(axes)
