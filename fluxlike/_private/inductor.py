"""The one file that tells Inductor how to compute an operation of ours (private parts of torch)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["teach"]

_taught: set[Any] = set()


def teach(operation: Any, f: Callable[..., tuple[Any, ...]], width: int, /) -> None:
    """Let Inductor compute an elementwise operation in the kernels that use it. This imports Inductor.

    Args:
        operation: of int64 tensors that broadcast, to an int64 tensor with one more axis, the last.
        f: from an element of each tensor to the elements on that axis, by ``+ * ^ & >>``.
        width: how many those are.
    """
    if operation in _taught:
        return
    from torch._inductor.ir import Pointwise
    from torch._inductor.lowering import broadcast_tensors, register_lowering
    from torch._inductor.virtualized import ops

    def lower(*tensors: Any) -> Any:
        tensors = tuple(broadcast_tensors(*tensors))
        load = [x.make_loader() for x in tensors]

        def element(place: Any) -> Any:
            *at, last = place
            values = f(*(_Element(ops, one(at)) for one in load))
            i = ops.index_expr(last, torch.int64)
            chosen = values[0].value
            for n, other in enumerate(values[1:], 1):
                chosen = ops.where(ops.eq(i, ops.constant(n, torch.int64)), other.value, chosen)
            return chosen

        device, size = tensors[0].get_device(), [*tensors[0].get_size(), width]
        return Pointwise.create(device=device, dtype=torch.int64, inner_fn=element, ranges=size)

    register_lowering(operation, type_promotion_kind=None)(lower)
    _taught.add(operation)


class _Element:
    """One element in the making of a kernel, with the arithmetic of Python."""

    def __init__(self, ops: Any, value: Any) -> None:
        self.ops, self.value = ops, value

    def _with(self, name: str, other: _Element | int) -> _Element:
        value = other.value if isinstance(other, _Element) else self.ops.constant(other, torch.int64)
        return _Element(self.ops, getattr(self.ops, name)(self.value, value))

    def __add__(self, other: _Element | int) -> _Element:
        return self._with("add", other)

    def __mul__(self, other: _Element | int) -> _Element:
        return self._with("mul", other)

    def __xor__(self, other: _Element | int) -> _Element:
        return self._with("bitwise_xor", other)

    def __and__(self, other: _Element | int) -> _Element:
        return self._with("bitwise_and", other)

    def __rshift__(self, other: _Element | int) -> _Element:
        return self._with("bitwise_right_shift", other)
