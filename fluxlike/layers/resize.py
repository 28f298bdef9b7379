"""Changing the size of images: Upsample, and channels moved into space and back."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, NoReturn

import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.checks import refuse_input
from fluxlike.layers.sizes import as_sizes, axes_text, refuse_shape
from fluxlike.trees.functor import functor

__all__ = ["PixelShuffle", "PixelUnshuffle", "Upsample"]

_ANY = (1, 2, 3)
_AXES = {
    "nearest": _ANY, "nearest-exact": _ANY, "area": _ANY,
    "linear": (1,), "bilinear": (2,), "bicubic": (2,), "trilinear": (3,),
}  # fmt: skip


@functor(children=())
class Upsample:
    """Interpolation to a multiple of the input's size, or to a given one, larger or smaller.

    Args:
        scale: the factor of every axis, or one an axis; the size is rounded down. (default: None)
        mode: "nearest", "nearest-exact" or "area" for one to three spatial axes, "linear" for one,
            "bilinear" or "bicubic" for two, "trilinear" for three. (default: "nearest")
        size: the size of the output, one number or one an axis, instead of `scale`. (default: None)
        align_corners: whether the centres of the corner pixels stay where they are, as in Flux; else their
            outer edges do, as is torch's default. For the linear modes and "bicubic". (default: False)

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: both of `scale` and `size` or none of them, an unknown mode, `align_corners` with a mode
            that has none; from a call, an input of another number of axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Upsample(2)(torch.tensor([[[1.0, 3.0]]]))
        tensor([[[1., 1., 3., 3.]]])
        >>> fl.Upsample(size=3, mode="linear", align_corners=True)(torch.tensor([[[1.0, 3.0]]]))
        tensor([[[1., 2., 3.]]])

    See also: `ConvTranspose`, `PixelShuffle`.
    """

    def __init__(
        self,
        scale: float | Sequence[float] | None = None,
        mode: str = "nearest",
        *,
        size: int | Sequence[int] | None = None,
        align_corners: bool = False,
    ) -> None:
        if (scale is None) == (size is None):
            raise ValueError(f"Upsample(scale={scale!r}, size={size!r}): write one of the two")
        self.scale = _positive("scale", scale)
        if mode not in _AXES:
            raise ValueError(f"mode={mode!r}: write one of {', '.join(_AXES)}")
        if align_corners and not mode.endswith(("linear", "cubic")):
            raise ValueError(f"align_corners=True: the mode {mode!r} has no corners to align; leave it out")
        self.size = _whole("size", size)
        self.mode, self.align_corners = mode, align_corners
        self._corners = align_corners if mode.endswith(("linear", "cubic")) else None

    def __call__(self, x: Tensor) -> Tensor:
        n = x.ndim - 2 if isinstance(x, Tensor) else 0
        given = self.size if self.scale is None else self.scale
        if n not in _AXES[self.mode] or (isinstance(given, tuple) and len(given) != n):
            self._refuse(x, given)
        try:
            return F.interpolate(x, self.size, self.scale, self.mode, self._corners)
        except RuntimeError as error:
            if self.scale is not None and not all(self._sizes(x)):
                raise ValueError(
                    f"Upsample makes of the input's {tuple(x.shape[2:])} an output of {self._sizes(x)}; "
                    "write a larger scale"
                ) from error
            raise

    def _sizes(self, x: Tensor) -> tuple[int, ...]:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,) * (x.ndim - 2)
        return tuple(int(n * s) for n, s in zip(x.shape[2:], scales, strict=True))

    def _refuse(self, x: Any, given: Any) -> NoReturn:
        if isinstance(given, tuple):
            if len(given) not in _AXES[self.mode]:
                raise ValueError(
                    f"Upsample takes {given}, numbers for {len(given)} axes, but mode={self.mode!r} is for "
                    f"{_AXES[self.mode][0]}"
                )
            refuse_shape("Upsample", x, len(given))
        if len(_AXES[self.mode]) == 1:
            refuse_shape("Upsample", x, _AXES[self.mode][0])
        _refuse_axes("Upsample", x)

    def extra_repr(self) -> str:
        first = f"size={self.size}" if self.scale is None else f"{self.scale}"
        mode = "" if self.mode == "nearest" else f", mode={self.mode!r}"
        return f"{first}{mode}{', align_corners=True' if self.align_corners else ''}"


def _positive(name: str, value: Any) -> Any:
    """A number, or a tuple of them.

    Raises:
        ValueError: one of them is no number, or not above zero.
    """
    numbers = tuple(value) if isinstance(value, Sequence) else (value,)
    if value is not None and not all(isinstance(n, Real) for n in numbers):
        raise ValueError(f"{name}={value!r}: write a positive number, or one an axis")
    if value is not None and not all(n > 0 for n in numbers):
        raise ValueError(f"{name}={value!r}: write positive numbers")
    return numbers if isinstance(value, Sequence) else value


def _whole(name: str, value: int | Sequence[int] | None) -> int | tuple[int, ...] | None:
    """A whole number above zero, or a tuple of them."""
    if value is None:
        return None
    if isinstance(value, Sequence):
        return as_sizes(name, value, len(value))
    return as_sizes(name, value, 1)[0]


def _factor(name: str, r: int | Sequence[int]) -> int:
    """The one factor of all axes.

    Raises:
        ValueError: several numbers, one that is not whole, or one below 1.
    """
    if isinstance(r, Sequence):
        alike = not isinstance(r, str) and len(set(r)) == 1
        hint = f"; write {name}({r[0]!r})" if alike else ""
        raise ValueError(f"{name} takes one whole number for all axes, found r={r!r}{hint}")
    return as_sizes("r", r, 1)[0]


def _refuse_axes(name: str, x: Any) -> NoReturn:
    refuse_input(name, x, "(N, C, …) with one to three spatial axes")


@functor(children=())
class PixelShuffle:
    """Channels moved into space (Shi et al. 2016, arXiv 1609.05158): (N, C·rⁿ, …) → (N, C, r·…).

    Over n spatial axes, one to three. For two it is torch's `PixelShuffle`; for others its order: the
    channel number is the output's channel, then the place on each axis, the last one fastest.

    Args:
        r: the factor of every spatial axis.

    Raises:
        ValueError: `r` below 1; from a call, a number of channels that rⁿ does not divide.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.PixelShuffle(2)(torch.arange(4.0).reshape(1, 4, 1, 1))
        tensor([[[[0., 1.],
                  [2., 3.]]]])
    """

    def __init__(self, r: int) -> None:
        self.r = _factor("PixelShuffle", r)

    def __call__(self, x: Tensor) -> Tensor:
        n, r = x.ndim - 2 if isinstance(x, Tensor) else 0, self.r
        if n not in _ANY:
            _refuse_axes("PixelShuffle", x)
        if x.shape[1] % r**n:
            raise ValueError(
                f"PixelShuffle({r}) takes the shape (N, C·{r**n}, {axes_text(n)}), found {tuple(x.shape)}"
            )
        if n == 2:
            return F.pixel_shuffle(x, r)
        places = x.unflatten(1, (x.shape[1] // r**n, *(r,) * n))  # (N, C, r, …, L, …)
        together = [axis for i in range(n) for axis in (2 + n + i, 2 + i)]
        sizes = (r * size for size in x.shape[2:])
        return places.permute(0, 1, *together).reshape(x.shape[0], places.shape[1], *sizes)

    def extra_repr(self) -> str:
        return f"{self.r}"


@functor(children=())
class PixelUnshuffle:
    """Space moved into channels, what undoes `PixelShuffle`: (N, C, r·…) → (N, C·rⁿ, …).

    Args:
        r: the factor by which every spatial axis shrinks.

    Raises:
        ValueError: `r` below 1; from a call, a spatial axis that r does not divide.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.randn(2, 3, 4, 6)
        >>> y = fl.PixelUnshuffle(2)(x)
        >>> y.shape, torch.equal(fl.PixelShuffle(2)(y), x)
        (torch.Size([2, 12, 2, 3]), True)
    """

    def __init__(self, r: int) -> None:
        self.r = _factor("PixelUnshuffle", r)

    def __call__(self, x: Tensor) -> Tensor:
        n, r = x.ndim - 2 if isinstance(x, Tensor) else 0, self.r
        if n not in _ANY:
            _refuse_axes("PixelUnshuffle", x)
        if any(size % r for size in x.shape[2:]):
            raise ValueError(
                f"PixelUnshuffle({r}) takes the shape (N, C, {axes_text(n)}) with spatial axes that {r} "
                f"divides, found {tuple(x.shape)}"
            )
        if n == 2 and x.shape[0]:  # torch's kernel leaves an empty batch as it is
            return F.pixel_unshuffle(x, r)
        sizes = [size // r for size in x.shape[2:]]
        places = x.reshape(*x.shape[:2], *(s for size in sizes for s in (size, r)))  # (N, C, L, r, …)
        apart = [*range(3, 3 + 2 * n, 2), *range(2, 2 + 2 * n, 2)]
        return places.permute(0, 1, *apart).reshape(x.shape[0], x.shape[1] * r**n, *sizes)

    def extra_repr(self) -> str:
        return f"{self.r}"
