"""Routes of functions that cut a tensor along an axis: piece by piece, of a tensor that is whole along it.

DTensor's derivative of all pieces together fails where some piece is not used; and where the axis is divided
over the ranks, it would gather all of it for each piece.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

__all__ = ["ROUTES"]


def _whole_along(x: DTensor, dim: int) -> DTensor:
    """A tensor that no rank has only a part of along an axis: gathered once, where they have."""
    wants = [Replicate() if p == Shard(dim % x.ndim) else p for p in x.placements]
    return x if wants == list(x.placements) else x.redistribute(placements=wants)


def _cut(x: DTensor, sizes: Sequence[int], dim: int) -> tuple[Tensor, ...]:
    x = _whole_along(x, dim)
    pieces, start = [], 0
    for size in sizes:
        pieces.append(x.narrow(dim, start, size))
        start += size
    return tuple(pieces)


def _in_sizes(x: DTensor, size: int, dim: int) -> tuple[Tensor, ...]:
    n = x.shape[dim]
    return _cut(x, [min(size, n - start) for start in range(0, n, size)], dim)


def _split(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    names = ("tensor", "split_size_or_sections" if func is torch.split else "split_size", "dim")
    x, size, dim = _given(names, args, kwargs)
    if isinstance(size, int):
        return _in_sizes(x, size, dim) if size > 0 and x.shape[dim] else NotImplemented
    return _cut(x, size, dim) if sum(size) == x.shape[dim] else NotImplemented  # torch says what is wrong


def _split_with_sizes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    x, sizes, dim = _given(("input", "split_sizes", "dim"), args, kwargs)
    return _cut(x, sizes, dim) if sum(sizes) == x.shape[dim] else NotImplemented


def _chunk(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    x, chunks, dim = _given(("input", "chunks", "dim"), args, kwargs)
    return _in_sizes(x, -(-x.shape[dim] // chunks), dim) if chunks > 0 and x.shape[dim] else NotImplemented


def _unbind(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    x, dim = _given(("input", "dim"), args, kwargs)
    whole = _whole_along(x, dim)
    return tuple(whole.select(dim, i) for i in range(whole.shape[dim]))


def _given(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    given = {"dim": 0} | dict(zip(names, args, strict=False)) | kwargs
    return [given[name] for name in names]


ROUTES: dict[Any, Any] = {
    torch.split: _split,
    Tensor.split: _split,
    torch.split_with_sizes: _split_with_sizes,
    Tensor.split_with_sizes: _split_with_sizes,
    torch.chunk: _chunk,
    Tensor.chunk: _chunk,
    torch.unbind: _unbind,
    Tensor.unbind: _unbind,
}
