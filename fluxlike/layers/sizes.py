"""Numbers an axis, such as windows and strides: as they are written and checked."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor

from fluxlike.layers.checks import refuse_input

__all__ = ["as_sizes", "as_window", "axes_text", "covered", "refuse_shape", "whole"]


def as_sizes(name: str, value: int | Sequence[int], n: int, *, least: int = 1) -> tuple[int, ...]:
    """One whole number for each of n axes.

    Raises:
        ValueError: another number of them, one below `least`, or one that is not whole.
    """
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * n
    if len(sizes) != n:
        raise ValueError(f"{name}={value!r}: write one number, or {n} of them, one an axis")
    return whole(name, value, sizes, least)


def as_window(name: str, value: Sequence[int], example: str) -> tuple[int, ...]:
    """A size for each of one to three axes; their number is that of the axes.

    Raises:
        ValueError: a single number, more than three, or one below 1.
    """
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) not in (1, 2, 3):
        raise ValueError(f"{name}={value!r}: write one number an axis, such as {example}")
    return whole(name, value, value, 1)


def whole(name: str, value: Any, numbers: Sequence[Any], least: int) -> tuple[int, ...]:
    """Whole numbers of at least `least`, as Python's ints."""
    try:
        found = tuple(map(operator.index, numbers))
    except TypeError:
        raise ValueError(f"{name}={value!r}: write whole numbers") from None
    if any(n < least for n in found):
        raise ValueError(f"{name}={value!r}: write numbers of at least {least}")
    return found


def covered(window: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """How many entries of each axis a window covers, from its first tap to its last."""
    return tuple(d * (k - 1) + 1 for k, d in zip(window, dilation, strict=True))


def axes_text(n: int) -> str:
    """The spatial axes in print."""
    return {1: "L", 2: "H, W", 3: "D, H, W"}[n]


def refuse_shape(name: str, x: Any, n: int, channels: int | None = None) -> NoReturn:
    """The error of an input that is not of n spatial axes, or not of so many channels.

    Raises:
        TypeError: it is no tensor.
        ValueError: in every other case.
    """
    wanted = f"(N, {'C' if channels is None else channels}, {axes_text(n)})"
    refuse_input(name, x, wanted, _hint(x, n, channels) if isinstance(x, Tensor) else "")


def _hint(x: Tensor, n: int, channels: int | None) -> str:
    if x.ndim == n + 2 and x.shape[-1] == channels:
        return "; the channels seem to be last: write x.movedim(-1, 1)"
    if x.ndim == n + 1 and channels in (None, x.shape[0]):
        return "; the batch seems to be missing: write x.unsqueeze(0)"
    if x.ndim == n + 1 and channels == 1:
        return "; the channel seems to be missing: write x.unsqueeze(1)"
    return ""
