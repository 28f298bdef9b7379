"""The order in which a tensor's numbers lie in memory: kernels give other bits for another one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["in_order", "order_of"]


def order_of(x: Tensor, /) -> list[int] | None:
    """The strides that a copy of a tensor has, where a new one has others, such as one in channels_last.

    A view of more memory is copied densely, in the order of its axes.
    """
    if x.layout is not torch.strided:
        return None
    new = torch.empty(x.shape, device="meta").stride()
    if x.stride() == new:
        return None
    dense = torch.empty_like(x.detach(), device="meta").stride()
    return None if dense == new else list(dense)


def in_order(x: Tensor, strides: Sequence[Any] | None, /) -> Tensor:
    """A tensor with the strides that `order_of` gave; itself where it has them.

    Raises:
        ValueError: they are not the strides of a dense tensor of its shape.
    """
    if strides is None:
        strides = torch.empty(x.shape, device="meta").stride()
    elif not _are_dense(x, strides):
        raise ValueError(
            f"strides {list(strides)!r:.100} are not those of a dense tensor of shape {[*x.shape]}"
        )
    if x.layout is not torch.strided or x.stride() == tuple(strides):
        return x
    return torch.empty_strided(x.shape, tuple(strides), dtype=x.dtype, device=x.device).copy_(x)


def _are_dense(x: Tensor, strides: Sequence[Any]) -> bool:
    if len(strides) != x.ndim or not all(type(s) is int and 0 <= s < 2**63 for s in strides):
        return False
    if not x.numel():
        return True
    reach = 1
    for step, n in sorted((s, n) for s, n in zip(strides, x.shape, strict=True) if n > 1):
        if step != reach:
            return False
        reach *= n
    return True
