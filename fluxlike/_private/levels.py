"""The one file that takes the batches of functorch's ``vmap`` apart (private parts of torch)."""

from __future__ import annotations

from torch import Tensor
from torch._C import _functorch

__all__ = ["outside"]


def outside(x: Tensor, outer: int, /) -> Tensor:
    """A tensor as an outer level sees it: what ``vmap`` made a batch since then has its axes in front."""
    level = _functorch.maybe_get_level(x)
    if level <= outer:
        return x
    inner = _functorch.get_unwrapped(x)
    if not _functorch.is_batchedtensor(x):
        return outside(inner, outer)
    # The axis is counted without those of the levels further out, so it moves before they are opened.
    return outside(inner.movedim(_functorch.maybe_get_bdim(x), 0), outer)
