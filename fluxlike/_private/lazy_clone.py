"""The one file that touches torch's copies on write (`torch._lazy_clone` is private).

Such a copy shares its memory with the original until either is written to, so it costs nothing where
nobody writes, and tells whether anybody did: also the kernels that change an input without declaring it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fluxlike._private import functorch

__all__ = ["lazy_clone", "shared_until_written", "was_written"]


def lazy_clone(x: Tensor, /) -> Tensor:
    """A copy of a tensor that carries no graph, made when either is written to, if the memory allows that."""
    copy = shared_until_written(x)
    return x.detach().clone() if copy is None else copy


def shared_until_written(x: Tensor, /) -> Tensor | None:
    """A plain tensor in the memory of another until either is written to; None if the memory forbids that."""
    x = x.detach()
    if type(x) is not Tensor or x.layout is not torch.strided or functorch.active():
        return None
    if x.device.type not in ("cpu", "cuda") or x.is_inference():
        return None
    try:
        return torch._lazy_clone(x)
    except RuntimeError:  # of memory that torch does not own
        return None


def was_written(copy: Tensor, /) -> bool | None:
    """Whether a tensor that `lazy_clone` made was written to since; None where it can't be told."""
    if not functorch.active() and torch._C._is_cow_tensor(copy):  # type: ignore[attr-defined]
        return False
    return True if copy._version else None
