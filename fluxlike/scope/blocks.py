"""Blocks of random words: of a key, a number that tells draws apart, and an index.

Where the key can be read, torch's operations work on its numbers. Elsewhere all of it is one operation,
``fluxlike::philox``: a trace has one node for it instead of a hundred, ``vmap`` runs it once for all keys,
and Inductor, once taught, computes it inside the kernel that uses the words. The bits are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import inductor, tracing
from fluxlike.scope.philox import WORD, Word, philox

__all__ = ["Domain", "block", "blocks", "in_pieces", "read", "teach_inductor"]

# Blocks that a CPU computes at once: few enough for its cache, many enough that calls cost little.
_PIECE = 16384


class Domain(IntEnum):
    """What a block is for, the upper word of its number: so that uses never meet."""

    DRAW = 0
    TORCH = 1
    SPLIT = 2
    FOLD = 3
    SEED = 4

    def number(self, of: Word = 0) -> Word:
        """A number of this domain, which has 32 bits there."""
        return of + (self << 32)


def read(data: Tensor, /) -> tuple[int, int] | None:
    """The two words of a key, where they can be read at no cost."""
    return tuple(data.tolist()) if tracing.readable(data) else None


def block(index: Word, number: Word, first: Word, second: Word, /) -> tuple[Any, ...]:
    """The four words at an index and a number of 64 bits, under a key of two words."""
    counter = index & WORD, (index >> 32) & WORD, number & WORD, number >> 32
    return philox(counter, (first, second))


def blocks(data: Tensor, number: Word, index: Tensor, /) -> Tensor:
    """The blocks of a key at an index, elementwise.

    Args:
        data: of the key, (2,).
        number: of 64 bits, an int or a 0-d tensor.
        index: in int64.

    Returns:
        Words in int64, of the shape of the index and four more, on its device.
    """
    key = read(data)
    if key is not None:
        return torch.stack(block(index, number, *key), -1)
    device = index.device
    if not isinstance(number, Tensor):
        number = torch.full((), number, dtype=torch.int64, device=device)
    return torch.ops.fluxlike.philox(index, number.to(device), *data.to(device).unbind(-1))


def in_pieces(f: Callable[[Tensor], Tensor], index: Tensor, members: int = 1) -> Tensor:
    """``f(index)``, its last axis but one that of the index, computed piece by piece on a CPU.

    Args:
        f: what to compute of an index.
        index: (n,).
        members: how many blocks are computed for an element of the index. (default: 1)
    """
    size = max(1, _PIECE // members)
    if index.device.type != "cpu" or index.shape[0] <= size:
        return f(index)
    return torch.cat([f(piece) for piece in index.split(size)], -2)


def teach_inductor() -> None:
    """Let Inductor compute blocks inside its kernels. This imports it."""
    inductor.teach(torch.ops.fluxlike.philox.default, block, 4)


_library = torch.library.Library("fluxlike", "FRAGMENT")
_library.define("philox(Tensor index, Tensor number, Tensor first, Tensor second) -> Tensor")


def _compute(index: Tensor, *others: Tensor) -> Tensor:
    def compute(index: Tensor) -> Tensor:
        return torch.stack(torch.broadcast_tensors(*block(index, *others)), -1)

    apart = all(x.ndim == 0 or x.shape[-1] == 1 for x in others)
    if index.ndim != 1 or not apart:
        return compute(index)
    return in_pieces(compute, index, max(x.numel() for x in others))


def _shape(index: Tensor, *others: Tensor) -> Tensor:
    return index.new_empty((*torch.broadcast_shapes(index.shape, *(x.shape for x in others)), 4))


def _mapped(info: Any, axes: tuple[int | None, ...], *words: Tensor) -> tuple[Tensor, int]:
    """The operation broadcasts, so it runs on the members' words with their axis in front of all others."""
    rank = max(x.ndim - (axis is not None) for x, axis in zip(words, axes, strict=True))

    def aligned(x: Tensor, axis: int | None) -> Tensor:
        if axis is None:
            return x
        x = x.movedim(axis, 0)
        return x.reshape(x.shape[0], *(1,) * (rank + 1 - x.ndim), *x.shape[1:])

    return torch.ops.fluxlike.philox(*map(aligned, words, axes)), 0


_library.impl("philox", _compute, "CompositeExplicitAutograd")
torch.library.register_fake("fluxlike::philox", _shape, lib=_library)
torch.library.register_vmap("fluxlike::philox", _mapped, lib=_library)
