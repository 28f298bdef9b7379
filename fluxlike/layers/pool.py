"""Pooling over windows: MaxPool, MeanPool, LPPool."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.padding import Pad, as_pads, explain_window, pad_text, pads_by_axis, split_pads
from fluxlike.layers.printing import settings_text, sizes_text
from fluxlike.layers.sizes import as_sizes, as_window, covered, refuse_shape
from fluxlike.placement.numbers import HALVES
from fluxlike.trees.functor import functor

__all__ = ["LPPool", "MaxPool", "MeanPool"]

_Pools = dict[int, Callable[..., Tensor]]


class _WindowPool:
    """What the pools over windows share: where the windows lie."""

    dilation: tuple[int, ...]

    def _place(
        self,
        window: Sequence[int],
        stride: int | Sequence[int] | None,
        pad: Pad,
        dilation: int | Sequence[int],
        ceil_mode: bool,
    ) -> None:
        self.window = as_window("window", window, "(2, 2)")
        n = len(self.window)
        self.stride = self.window if stride is None else as_sizes("stride", stride, n)
        self.dilation = as_sizes("dilation", dilation, n)
        self.ceil_mode = ceil_mode
        reach = covered(self.window, self.dilation)
        self.pad = as_pads(pad, [size - 1 for size in reach])
        if self._pads_beyond(reach):
            raise ValueError(f"pad={pad!r}: a pool takes pads of at most half the window, {reach}")
        padded = [max(ends) > 0 for ends in pads_by_axis(self.pad)]
        self._steps_over = any(p and d > 1 for p, d in zip(padded, self.dilation, strict=True))
        # torch's kernels count the window without its dilation
        self._pad_inside, self._pad_before = split_pads(self.pad, before=self._pads_beyond(self.window))
        if self._pad_before and ceil_mode:
            raise ValueError(
                f"pad={pad!r}: ceil_mode goes with pads that are alike at both ends, and at most half of "
                f"{self.window}"
            )

    def _pads_beyond(self, sizes: Sequence[int]) -> bool:
        """Whether a pad is more than half the size."""
        return any(max(ends) > n // 2 for ends, n in zip(pads_by_axis(self.pad), sizes, strict=True))

    def __call__(self, x: Tensor) -> Tensor:
        n = len(self.window)
        if not isinstance(x, Tensor) or x.ndim != n + 2:
            refuse_shape(type(self).__name__, x, n)
        if self._steps_over:
            self._require_entries(x.shape[2:])
        try:
            return self._pool(n, x)
        except NotImplementedError as error:
            name = type(self).__name__
            raise TypeError(f"{name} has no kernel for {x.dtype} on {x.device}; write x.float()") from error
        except RuntimeError:
            reach = covered(self.window, self.dilation)
            explain_window(type(self).__name__, "window", x, reach, self.pad)
            raise

    def _require_entries(self, sizes: Sequence[int]) -> None:
        """Refuse an input that a window of wide dilation steps over, from padding to padding."""
        axes = zip(sizes, self.window, self.stride, self.dilation, pads_by_axis(self.pad), strict=True)
        for n, k, stride, dilation, (lo, hi) in axes:
            for first in range(-lo, n + hi - dilation * (k - 1), stride) if n < dilation else ():
                if not any(0 <= first + dilation * i < n for i in range(k)):
                    raise ValueError(
                        f"a window of {type(self).__name__}, {self.window} with dilation={self.dilation}, "
                        f"holds only padding of an input of size {tuple(sizes)}; write a smaller "
                        "dilation, or pad=0"
                    )

    def _pool(self, n: int, x: Tensor) -> Tensor:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"{self.window}{self._place_text()}"

    def _place_text(self) -> str:
        return (
            sizes_text("stride", self.stride, self.window)
            + pad_text(self.pad)
            + sizes_text("dilation", self.dilation, (1,) * len(self.window))
            + settings_text(ceil_mode=(self.ceil_mode, False))
        )


@functor(children=())
class MaxPool(_WindowPool):
    """The largest value of every window.

    Args:
        window: its size, one number an axis.
        stride: its step. (default: the window)
        pad: how far it reaches beyond the ends, at most half the window: one number, one an axis, a pair
            (before, after) an axis, or `SamePad()`; padding is never the largest. (default: 0)
        dilation: distance of the window's entries. (default: 1)
        ceil_mode: whether a last window that reaches over the end counts. (default: False)

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: a wrong number of axes, a stride below 1, too large a pad; from a call, an input of
            another shape, smaller than the window, or of which a dilated window holds only padding.
        TypeError: from a call: no tensor, or one of a dtype that torch has no kernel for.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.MaxPool((2, 2))(torch.arange(16.0).reshape(1, 1, 4, 4))
        tensor([[[[ 5.,  7.],
                  [13., 15.]]]])
    """

    _kernels: ClassVar[_Pools] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}

    def __init__(
        self,
        window: Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        pad: Pad = 0,
        dilation: int | Sequence[int] = 1,
        ceil_mode: bool = False,
    ) -> None:
        self._place(window, stride, pad, dilation, ceil_mode)

    def _pool(self, n: int, x: Tensor) -> Tensor:
        if self._pad_before:
            x = F.pad(x, self._pad_before, value=_least(x.dtype))
        pool = self._kernels[n]
        return pool(x, self.window, self.stride, self._pad_inside, self.dilation, self.ceil_mode)


@functor(children=())
class MeanPool(_WindowPool):
    """The mean of every window; padding counts as zeros.

    Args:
        window: its size, one number an axis.
        stride: its step. (default: the window)
        pad: how far it reaches beyond the ends, at most half the window: one number, one an axis, a pair
            (before, after) an axis, or `SamePad()`. (default: 0)
        ceil_mode: whether a last window that reaches over the end counts. (default: False)
        count_include_pad: whether padding counts; without, it is the mean of what is there. (default: True)

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: a wrong number of axes, a stride below 1, too large a pad; from a call, an input of
            another shape, or smaller than the window.
        TypeError: from a call: no tensor, or one of a dtype that torch has no kernel for.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.MeanPool((2,))(torch.tensor([[[1.0, 3.0, 5.0, 7.0]]]))
        tensor([[[2., 6.]]])
    """

    def __init__(
        self,
        window: Sequence[int],
        *,
        stride: int | Sequence[int] | None = None,
        pad: Pad = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
    ) -> None:
        self._place(window, stride, pad, 1, ceil_mode)
        self.count_include_pad = count_include_pad

    def _pool(self, n: int, x: Tensor) -> Tensor:
        before, inside = self._pad_before, self._pad_inside
        if (
            n == 3
            and not self.ceil_mode
            and any(m < k for m, k in zip(x.shape[2:], self.window, strict=True))
        ):
            inside, before = split_pads(self.pad, before=True)  # torch's kernel asks for a whole window
        if before:
            y = self._mean(n, F.pad(x, before), inside, True)
            return y if self.count_include_pad else y / self._share(n, x, before)
        if self.ceil_mode and self.count_include_pad:  # Inductor's gradient of the two together is wrong
            y = self._mean(n, x, inside, False)
            return y * self._mean(n, _ones(x), inside, True) if any(inside) else y
        return self._mean(n, x, inside, self.count_include_pad)

    def _share(self, n: int, x: Tensor, before: tuple[int, ...]) -> Tensor:
        """How much of each window is not padding."""
        return self._mean(n, F.pad(_ones(x), before), (0,) * n, True)

    def _mean(self, n: int, x: Tensor, inside: tuple[int, ...], include: bool) -> Tensor:
        return _MEANS[n](x, self.window, self.stride, inside, self.ceil_mode, include)

    def extra_repr(self) -> str:
        return super().extra_repr() + settings_text(count_include_pad=(self.count_include_pad, True))


@functor(children=())
class LPPool(_WindowPool):
    """The power sum of every window: ``(Σ xᵖ)^(1/p)``, without the absolute value, as torch computes it.

    For p = 1 it is the sum; for a large p it approaches the maximum of what is positive.

    Args:
        window: its size, one number an axis.
        p: the power. (default: 2)
        stride: its step. (default: the window)
        pad: zeros beyond the ends, at most half the window: one number, one an axis, a pair (before, after)
            an axis, or `SamePad()`. (default: 0)
        ceil_mode: whether a last window that reaches over the end counts, scaled up to a whole one.
            (default: False)

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: a wrong number of axes, a stride below 1, too large a pad, a power that is not positive;
            from a call, an input of another shape, or smaller than the window.
        TypeError: from a call: no tensor, or one of a dtype that torch has no kernel for.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.LPPool((2,))(torch.tensor([[[3.0, 4.0, 6.0, 8.0]]]))
        tensor([[[ 5., 10.]]])
    """

    def __init__(
        self,
        window: Sequence[int],
        p: float = 2,
        *,
        stride: int | Sequence[int] | None = None,
        pad: Pad = 0,
        ceil_mode: bool = False,
    ) -> None:
        if p <= 0:
            raise ValueError(f"LPPool(p={p!r}): write a positive power")
        self._place(window, stride, pad, 1, ceil_mode)
        self.p = p
        _, self._pad_before = split_pads(self.pad, before=True)

    def _pool(self, n: int, x: Tensor) -> Tensor:
        powers = (F.pad(x, self._pad_before) if self._pad_before else x).pow(self.p)
        means = _MEANS[n](powers, self.window, self.stride, (0,) * n, self.ceil_mode, not self.ceil_mode)
        sums = means * math.prod(self.window)
        return (sums.sign() * F.relu(sums.abs())).pow(1 / self.p)  # whose gradient at 0 is 0

    def extra_repr(self) -> str:
        return f"{self.window}{settings_text(p=(self.p, 2))}{self._place_text()}"


def _least(dtype: torch.dtype) -> float:
    if dtype.is_floating_point:
        return -math.inf
    return torch.iinfo(dtype).min if dtype is not torch.bool and not dtype.is_complex else 0


def _ones(x: Tensor) -> Tensor:
    return x.new_ones((1, 1, *x.shape[2:]))


def _mean_pool3d(x: Tensor, *settings: Any) -> Tensor:
    """torch's, which on the CPU has no 16 bits."""
    if x.device.type != "cpu" or x.dtype not in HALVES:
        return F.avg_pool3d(x, *settings)
    return F.avg_pool3d(x.float(), *settings).to(x.dtype)


_MEANS: _Pools = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: _mean_pool3d}
