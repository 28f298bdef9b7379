"""Leaves packed into one flat tensor: formulas over memory that stays in the processor's cache.

For numbers in memory on the CPU, where nothing is recorded. Many small leaves become one, a large one
is cut in pieces, and the results of operations are written to buffers that are used again as soon as
the formula has let go of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from fluxlike.optimisers.leaves import Leaves, Scalar

__all__ = ["Buffers", "Flat", "Piece", "blocks", "gathered"]

Piece = tuple[int, int, int]  # a leaf, and the numbers of it from one to another

_SIZE = 1 << 17  # numbers in a block


class Buffers:
    """Flat memory that is handed out, taken back and handed out again."""

    __slots__ = ("_dtype", "_free")

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._free: dict[int, list[Tensor]] = {}

    def get(self, n: int) -> Tensor:
        """A buffer of n numbers, whatever they are."""
        free = self._free.get(n)
        return free.pop() if free else torch.empty(n, dtype=self._dtype)

    def give(self, buffer: Tensor) -> None:
        """Take back a buffer that nobody else holds."""
        self._free.setdefault(buffer.numel(), []).append(buffer)


class _Memory:
    """A flat tensor, whose buffer goes back when nothing holds it any more."""

    __slots__ = ("buffers", "tensor")

    def __init__(self, tensor: Tensor, buffers: Buffers | None) -> None:
        self.tensor, self.buffers = tensor, buffers

    def __del__(self) -> None:
        if self.buffers is not None:
            self.buffers.give(self.tensor)


class Flat(Leaves):
    """One flat tensor with the arithmetic of `Leaves`.

    A factor and a denominator are kept aside until they can be part of the next operation, as torch's
    ``add(alpha=)`` and ``addcdiv`` take them: memory is walked through once instead of three times.

    Args:
        tensor: the numbers.
        buffers: where the memory of results comes from.
        owned: whether the memory goes back there when nothing holds it.
    """

    __slots__ = ("_buffers", "_memory", "_over", "_scale")

    def __init__(self, tensor: Tensor, buffers: Buffers, *, owned: bool = False) -> None:
        self._buffers = buffers
        self._memory = _Memory(tensor, buffers if owned else None)
        self._scale = 1.0
        self._over: _Memory | None = None

    @property
    def tensors(self) -> list[Tensor]:  # type: ignore[override]
        """The one tensor, with factor and denominator applied."""
        if self._over is not None:
            out = torch.div(self._memory.tensor, self._over.tensor, out=self._new())
            self._memory, self._over = _Memory(out, self._buffers), None
            if self._scale != 1.0:
                out.mul_(self._scale)
        elif self._scale != 1.0:
            out = torch.mul(self._memory.tensor, self._scale, out=self._new())
            self._memory = _Memory(out, self._buffers)
        self._scale = 1.0
        return [self._memory.tensor]

    def taken(self) -> Tensor | None:
        """The memory, which does not go back; None if it is somebody else's."""
        (tensor,) = self.tensors
        if self._memory.buffers is None:
            return None
        self._memory.buffers = None
        return tensor

    def settle(self) -> None:
        """Apply what is kept aside, and copy what is not in a buffer, so that inputs may be written over."""
        aside = self._over is not None or self._scale != 1.0
        lent = self._memory.buffers is None or (self._over is not None and self._over.buffers is None)
        if aside and lent:
            self.tensors  # noqa: B018
        if self._memory.buffers is None:
            self._memory = _Memory(self._new().copy_(self._memory.tensor), self._buffers)

    def less(self, step: Flat, out: Tensor | None = None) -> Tensor:
        """``x - step``, in new memory or in `out`, which may be that of x."""
        out = self._new() if out is None else out
        return self._plus(step, -1.0, out)

    def lerp(self, y: Leaves, weight: Scalar) -> Leaves:
        if isinstance(weight, Tensor):
            return super().lerp(y, weight)
        return self._into(torch.lerp, y.tensors[0], weight)

    def add_product(self, y: Leaves, z: Leaves, weight: Scalar = 1.0) -> Leaves:
        if isinstance(weight, Tensor):
            return super().add_product(y, z, weight)
        return self._into(torch.addcmul, y.tensors[0], z.tensors[0], value=weight)

    def each(self, f: Callable[..., Tensor], *others: Leaves) -> Leaves:
        return Flat(f(self.tensors[0], *(o.tensors[0] for o in others)), self._buffers)

    def _unary(self, name: str) -> Leaves:
        return self._scaled(-1.0) if name == "neg" else self._into(getattr(torch, name))

    def _binary(self, name: str, y: Leaves | Scalar) -> Leaves:
        if isinstance(y, Flat):
            if name in ("add", "sub"):
                sign = 1.0 if name == "add" else -1.0
                if name == "add" and (self._scale != 1.0 or self._over is not None):
                    self, y = y, self  # so that the factor of this one is part of the operation
                return Flat(self._plus(y, sign, self._new()), self._buffers, owned=True)
            if name == "div" and self._over is None and y._over is None:
                quotient = self._scaled(1.0 / y._scale if y._scale else float("inf"))
                quotient._over = y._memory
                return quotient
        elif not isinstance(y, (Leaves, Tensor)):
            if name == "mul":
                return self._scaled(y)
            if name == "div" and y:
                return self._scaled(1.0 / y)
        other = y.tensors[0] if isinstance(y, Leaves) else y
        return self._into(getattr(torch, name), other)

    def _plus(self, y: Flat, sign: float, out: Tensor) -> Tensor:
        (x,) = self.tensors
        if y._over is not None:
            return torch.addcdiv(x, y._memory.tensor, y._over.tensor, value=sign * y._scale, out=out)
        return torch.add(x, y._memory.tensor, alpha=sign * y._scale, out=out)

    def _scaled(self, factor: float) -> Flat:
        new = Flat.__new__(Flat)
        new._buffers, new._memory, new._over = self._buffers, self._memory, self._over
        new._scale = self._scale * factor
        return new

    def _new(self) -> Tensor:
        return self._buffers.get(self._memory.tensor.numel())

    def _into(self, f: Callable[..., Tensor], *operands: Any, **named: Any) -> Flat:
        (x,) = self.tensors
        return Flat(f(x, *operands, out=self._new(), **named), self._buffers, owned=True)


def blocks(xs: list[Tensor], js: list[int]) -> Iterator[list[Piece]]:
    """Leaves in blocks: small ones together, a middling one alone, a large one in pieces."""
    block: list[Piece] = []
    filled = 0
    for j in js:
        n = xs[j].numel()
        if n > 2 * _SIZE:
            for start in range(0, n, _SIZE):
                yield [(j, start, min(start + _SIZE, n))]
        elif n > _SIZE // 8:
            yield [(j, 0, n)]
        else:
            block.append((j, 0, n))
            filled += n
            if filled >= _SIZE:
                yield block
                block, filled = [], 0
    if block:
        yield block


def gathered(column: list[Tensor], block: list[Piece], buffers: Buffers) -> Flat:
    """The numbers of a block as one flat tensor."""
    if len(block) == 1:
        j, start, stop = block[0]
        return Flat(column[j].view(-1)[start:stop], buffers)
    parts = [column[j].view(-1) for j, _, _ in block]
    total = sum(stop for _, _, stop in block)
    return Flat(torch.cat(parts, out=buffers.get(total)), buffers, owned=True)
