"""The one file that touches torch's copies on write (`torch._lazy_clone` is private).

Such a copy shares its memory with the original until either is written to, so it costs nothing where
nobody writes, and tells whether anybody did: also the kernels that change an input without declaring it.
It must not outlive a call whose original is memory of the user's: what is written later would move, away
from arrays that look at it.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from fluxlike._private import functorch

__all__ = ["is_shared", "lazy_clone", "shared_until_written", "was_written"]

_lock = threading.Lock()  # torch takes none when two threads share one original for the first time


def lazy_clone(x: Tensor, /) -> Tensor:
    """A copy of a tensor that carries no graph, made when either is written to, if the memory allows that."""
    x = x.detach()
    copy = shared_until_written(x)
    return x.clone() if copy is None else copy


def shared_until_written(x: Tensor, /) -> Tensor | None:
    """A tensor in the memory of another until either is written to; None if the memory forbids that.

    It is differentiable, as a clone is.
    """
    if type(x) is nn.Parameter:
        x = x.view_as(x) if x.requires_grad and torch.is_grad_enabled() else x.detach()
    if type(x) is not Tensor or not (x.is_cpu or x.is_cuda) or x.is_inference() or functorch.active():
        return None
    try:
        with _lock:
            return torch._lazy_clone(x)
    except RuntimeError:  # of memory that torch does not own, or of none
        return None


def is_shared(x: Tensor, /) -> bool:
    """Whether neither a tensor nor what shares its memory was written to."""
    return torch._C._is_cow_tensor(x)  # type: ignore[attr-defined]


def was_written(copy: Tensor, /) -> bool | None:
    """Whether a tensor that `lazy_clone` made was written to since; None where it can't be told."""
    if not functorch.active() and copy.layout is torch.strided and is_shared(copy):
        return False
    return True if copy._version else None
