"""What the shape of a weight, (out, in, …), says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fluxlike.trees.show import value_text

__all__ = ["fans", "matrix", "require_shape"]


def require_shape(name: str, shape: Any, /) -> None:
    """Refuse what is no sequence of sizes.

    Raises:
        TypeError: it is none; it names the init.
        ValueError: a size below 0.
    """
    if not isinstance(shape, (tuple, list)) or not all(map(_is_size, shape)):
        raise TypeError(f"{name} takes a shape, such as (3, 4), found {value_text(shape)}")
    if any(n < 0 for n in shape):
        raise ValueError(f"{name} got the shape {tuple(shape)}: a size is at least 0")


def _is_size(n: Any) -> bool:
    return hasattr(n, "__index__") and not isinstance(n, Tensor)


def matrix(name: str, shape: Sequence[int], /) -> tuple[int, int]:
    """The sizes of the matrix (out, in·…) that a shape stands for.

    Raises:
        TypeError: as `require_shape`.
        ValueError: fewer than two axes; it names the init.
    """
    require_shape(name, shape)
    if len(shape) < 2:
        raise ValueError(
            f"{name} got the shape {tuple(shape)}: weights have at least two axes, (out, in, …); "
            "biases start at zero"
        )
    return shape[0], math.prod(shape[1:])


def fans(name: str, shape: Sequence[int], /) -> tuple[int, int]:
    """How many inputs an output depends on, and the other way round; at least 1.

    Raises:
        TypeError: as `require_shape`.
        ValueError: as `matrix`.
    """
    outputs, inputs = matrix(name, shape)
    return max(inputs, 1), max(outputs * math.prod(shape[2:]), 1)
