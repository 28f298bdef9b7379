"""The normal distribution between two bounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fluxlike import random
from fluxlike.init.shapes import require_shape
from fluxlike.placement.numbers import at_least_float32

__all__ = ["truncated_normal"]


def truncated_normal(
    shape: Sequence[int],
    /,
    *,
    mean: float = 0.0,
    std: float = 1.0,
    low: float = -2.0,
    high: float = 2.0,
) -> Tensor:
    """Normal draws, given that they are between `low` and `high`.

    The bounds are values, not multiples of `std`, as in Flux and torch: transformers start with
    ``truncated_normal(shape, std=0.02, low=-0.04, high=0.04)``, or with bounds far away. Drawn by the
    inverse of the distribution function, one uniform an entry, from whichever tail is the closer one.

    Args:
        shape: of the result.
        mean: of the normal distribution before it is cut. (default: 0)
        std: its standard deviation, above 0. (default: 1)
        low: the lower bound. (default: -2)
        high: the upper bound. (default: 2)

    Returns:
        A new tensor.

    Raises:
        TypeError: `shape` is no sequence of sizes.
        ValueError: `std` is not positive, `low` is not below `high`, or both are so far on one side that
            no number is left between them.

    Example:
        >>> import fluxlike as fl
        >>> w = fl.init.truncated_normal((100, 100), std=0.02, low=-0.04, high=0.04)
        >>> bool(w.abs().max() <= 0.04)
        True
    """
    require_shape("truncated_normal", shape)
    if not std > 0:
        raise ValueError(f"truncated_normal: std={std}; write a number above 0")
    if not low < high:
        raise ValueError(f"truncated_normal: low={low} is not below high={high}")
    a, b = (low - mean) / std, (high - mean) / std
    flipped = a > 0  # the distribution function is most exact in the lower tail
    if flipped:
        a, b = -b, -a
    below, upto = _distribution(a), _distribution(b)
    dtype = torch.get_default_dtype()
    wide = at_least_float32(dtype)
    if upto - below < torch.finfo(wide).tiny:
        raise ValueError(
            f"truncated_normal: from {low} to {high} there is nothing left of a normal distribution of mean "
            f"{mean} and standard deviation {std}"
        )
    p = below + (upto - below) * random.uniform(shape, dtype=wide)
    z = torch.special.ndtri(p.clamp(torch.finfo(wide).tiny, 1 - torch.finfo(wide).eps / 2))
    return (mean + std * (-z if flipped else z)).to(dtype).clamp(low, high)


def _distribution(x: float) -> float:
    """The distribution function of the standard normal."""
    return 0.5 * math.erfc(-x / 2**0.5)
