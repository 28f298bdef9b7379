"""The one file that touches torch's copies on write (`torch._lazy_clone` is private).

Such a copy shares its memory with the original until either is written to, so it costs nothing where
nobody writes, and tells whether anybody did: also the kernels that change an input without declaring it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluxlike._private import functorch

__all__ = ["lazy_clone", "was_written"]


def lazy_clone(x: Tensor, /) -> Tensor:
    """A copy of a tensor that carries no graph, made when it is written to, if the memory allows that."""
    x = x.detach()
    if type(x) is not Tensor or x.device.type not in ("cpu", "cuda") or functorch.active():
        return x.clone()
    try:
        return torch._lazy_clone(x)
    except RuntimeError:  # of memory that torch does not own
        return x.clone()


def was_written(copy: Tensor, /) -> bool | None:
    """Whether a tensor that `lazy_clone` made was written to since; None where it can't be told."""
    if not functorch.active() and torch._C._is_cow_tensor(copy):  # type: ignore[attr-defined]
        return False
    return True if copy._version else None
