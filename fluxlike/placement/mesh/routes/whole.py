"""Routes of what looks at all rows at once, such as results whose size depends on values."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.placement.mesh.rowwise import Whole, tensors_over
from fluxlike.placement.mesh.tensors import replicated

__all__ = ["ROUTES"]

_NAMES = """
    bincount block_diag cartesian_prod combinations corrcoef histc masked_scatter masked_select nanquantile
    nonzero quantile scatter_reduce take unique unique_consecutive trace vander
"""
_ROOMS: tuple[Any, ...] = (torch, Tensor)
_MIXED = [getattr(room, name) for name in _NAMES.split() for room in _ROOMS if hasattr(room, name)]


def _item(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Rows by a mask: as many as it says, which every rank has to know. A list of numbers is a tensor."""
    x, index = args

    def numbers(i: Any) -> Any:
        of_numbers = isinstance(i, list) and i and all(isinstance(k, int) for k in i)
        return replicated(torch.tensor(i, device=x.device), x.device_mesh) if of_numbers else i

    new = tuple(map(numbers, index)) if isinstance(index, tuple) else numbers(index)
    if any(i.dtype in (torch.bool, torch.uint8) for i in tensors_over([new])):
        return Whole()(func, (x, new), kwargs)
    return NotImplemented if new is index else func(x, new)


ROUTES: dict[Any, Any] = {
    **dict.fromkeys((*_MIXED, F.pdist, torch.linalg.lstsq, Tensor.__format__), Whole()),
    Tensor.__getitem__: _item,
}
