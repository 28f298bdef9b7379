"""What the shape of a weight, (out, in, …), says."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["fans", "matrix"]


def matrix(name: str, shape: Sequence[int], /) -> tuple[int, int]:
    """The sizes of the matrix (out, in·…) that a shape stands for.

    Raises:
        ValueError: fewer than two axes; it names the init.
    """
    if len(tuple(shape)) < 2:
        raise ValueError(
            f"{name} got the shape {tuple(shape)}: weights have at least two axes, (out, in, …); "
            "biases start at zero"
        )
    return shape[0], math.prod(shape[1:])


def fans(name: str, shape: Sequence[int], /) -> tuple[int, int]:
    """How many inputs an output depends on, and the other way round; at least 1.

    Raises:
        ValueError: as `matrix`.
    """
    outputs, inputs = matrix(name, shape)
    return max(inputs, 1), max(outputs * math.prod(shape[2:]), 1)
