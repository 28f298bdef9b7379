"""How the entries of a tensor are spread, counted on their device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Histogram", "histogram"]

_BINS = 64
_PART = 2**22  # entries at a time: less memory, and counts that float32 holds


@dataclass(frozen=True)
class Histogram:
    """Counts of finite entries in bins of one width.

    Attributes:
        edges: of the bins, one more than there are bins; none if there is no finite entry.
        counts: of the entries in every bin; a bin holds its lower edge, the last one both.
        nonfinite: how many entries are NaN or infinite.
        total: the sum of the entries.
        squares: the sum of their squares.
    """

    edges: list[float]
    counts: list[int]
    nonfinite: int
    total: float
    squares: float


def histogram(values: Tensor, /) -> Histogram:
    """The histogram of a tensor, in 64 bins from its least to its greatest entry; one if they are equal.

    Args:
        values: real, of any shape and dtype.

    Raises:
        TypeError: no tensor, or a complex one.
        ValueError: it has no entries.

    Example:
        >>> import torch
        >>> found = histogram(torch.tensor([0.0, 1.0, 1.0, torch.nan]))
        >>> found.counts[0], found.counts[-1], found.nonfinite
        (1, 2, 1)
    """
    if not isinstance(values, Tensor) or values.is_complex():
        kind = values.dtype if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise TypeError(f"a histogram is of a tensor of real numbers, found {kind}")
    if not values.numel():
        raise ValueError(f"a histogram of no entries: the tensor has the shape {tuple(values.shape)}")
    flat = values.detach().reshape(-1)
    wide = torch.float32 if flat.device.type == "mps" else torch.float64
    flat = flat if flat.is_floating_point() else flat.to(wide)
    finite = flat[flat.isfinite()]
    if not finite.numel():
        return Histogram([], [], flat.numel(), 0.0, 0.0)
    least, greatest = finite.min(), finite.max()
    low, high = torch.stack([least, greatest]).tolist()
    bins = _BINS if low < high and math.isfinite(high - low) else 1
    found = torch.zeros(bins + 2, dtype=wide, device=flat.device)
    for part in finite.split(_PART):
        precise = part.to(wide)
        found[:bins] += torch.histc(precise, bins, low, high) if bins > 1 else part.numel()
        found[bins] += precise.sum()
        found[bins + 1] += precise.square().sum()
    *counts, total, squares = found.tolist()
    edges = [low + (high - low) * i / bins for i in range(bins)] + [high] if bins > 1 else [low, high]
    return Histogram(edges, [int(n) for n in counts], flat.numel() - finite.numel(), total, squares)
