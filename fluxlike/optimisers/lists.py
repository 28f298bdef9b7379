"""Arithmetic on lists of tensors: one foreach call, or one by one inside functorch's transforms.

Each takes a number, a 0-d tensor or a list as its second operand. Nothing is written in place, so
that an update can be differentiated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch

__all__ = ["Tensors", "add", "addcmul", "clamp", "div", "lerp", "mul", "norms", "sqrt", "sub"]

Tensors = list[Tensor]
Operand = float | Tensor | Sequence[Tensor]


def _binary(name: str) -> Callable[[Sequence[Tensor], Operand], Tensors]:
    foreach, single = getattr(torch, f"_foreach_{name}"), getattr(torch, name)

    def op(xs: Sequence[Tensor], y: Operand) -> Tensors:
        if isinstance(y, (list, tuple)):
            ys: Sequence[Any] = [_like(v, x) for v, x in zip(y, xs, strict=True)]
        elif isinstance(y, Tensor) and (y.requires_grad or len({x.dtype for x in xs}) > 1):
            ys = [_like(y, x) for x in xs]  # foreach can't differentiate by a shared operand
        elif not functorch.active():
            return list(foreach(xs, _like(y, xs[0])))
        else:
            ys = [_like(y, x) for x in xs]
        if functorch.active() or not isinstance(ys[0], Tensor):
            return [single(x, v) for x, v in zip(xs, ys, strict=True)]
        return list(foreach(xs, ys))

    op.__doc__ = f"``{name}(x, y)`` for every x of a list."
    return op


add = _binary("add")
mul = _binary("mul")
div = _binary("div")


def sub(xs: Sequence[Tensor], ys: Sequence[Tensor]) -> Tensors:
    """``x - y`` for every pair of two lists."""
    if not functorch.active():
        return list(torch._foreach_sub(_list(xs), _list(ys)))
    return [x - y for x, y in zip(xs, ys, strict=True)]


def sqrt(xs: Sequence[Tensor]) -> Tensors:
    """The square root of every tensor of a list; its derivative at 0 is 0, not infinity."""
    if functorch.active() or any(x.requires_grad for x in xs):
        return [torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0) for x in xs]
    return list(torch._foreach_sqrt(_list(xs)))


def norms(xs: Sequence[Tensor], p: float) -> Tensors:
    """The p-norm of every tensor of a list as a vector; of an empty one, 0."""
    return [torch.linalg.vector_norm(x, p) if x.numel() else x.new_zeros(()) for x in xs]


def clamp(xs: Sequence[Tensor], low: Any, high: Any) -> Tensors:
    """Every tensor of a list, limited elementwise."""
    if functorch.active() or isinstance(high, Tensor):
        return [torch.clamp(x, _like(low, x), _like(high, x)) for x in xs]
    return list(torch._foreach_clamp_max(torch._foreach_clamp_min(_list(xs), low), high))


def lerp(xs: Sequence[Tensor], ys: Sequence[Tensor], weight: float | Tensor) -> Tensors:
    """``x + weight · (y - x)`` for every pair of two lists."""
    if functorch.active() or isinstance(weight, Tensor):
        return [torch.lerp(x, y, _like(weight, x)) for x, y in zip(xs, ys, strict=True)]
    return list(torch._foreach_lerp(_list(xs), _list(ys), weight))


def addcmul(
    xs: Sequence[Tensor], ys: Sequence[Tensor], zs: Sequence[Tensor], value: float | Tensor
) -> Tensors:
    """``x + value · y · z`` for every triple of three lists."""
    if functorch.active() or isinstance(value, Tensor):
        return [x + _like(value, x) * (y * z) for x, y, z in zip(xs, ys, zs, strict=True)]
    return list(torch._foreach_addcmul(_list(xs), _list(ys), _list(zs), value))


def _like(y: Any, x: Tensor) -> Any:
    """A 0-d tensor in the dtype of x, so that it does not promote a parameter that is 0-d itself."""
    return y.to(x.dtype) if isinstance(y, Tensor) and y.dtype != x.dtype else y


def _list(xs: Sequence[Tensor]) -> list[Tensor]:
    return xs if isinstance(xs, list) else list(xs)
