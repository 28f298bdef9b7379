"""Arithmetic on many leaves as if they were one: a foreach call for each operation.

A formula written for one tensor runs unchanged on `Leaves`. Nothing is written in place, so that it
can be differentiated; inside functorch's transforms, which have no foreach, and in a trace, which is
compiled, it runs one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch, tracing

__all__ = ["Leaves", "Scalar", "decayed", "larger", "norms", "smaller", "where"]

Scalar = float | Tensor  # a number, or a 0-d tensor for one that is only known when the graph runs


def one_by_one() -> bool:
    """Whether a call for each tensor serves as well as one for all, or is the only way."""
    return functorch.active() or tracing.tracing()


class Leaves:
    """A list of tensors with the arithmetic of one.

    The tensors are of one dtype, on one device. The second operand of an operation is leaves of the
    same shapes (or 0-d each), a number, or a 0-d tensor, which is taken in the dtype of the leaves.
    """

    __slots__ = ("tensors",)

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors if isinstance(tensors, list) else list(tensors)

    def __add__(self, y: Leaves | Scalar) -> Leaves:
        return self._binary("add", y)

    def __sub__(self, y: Leaves | Scalar) -> Leaves:
        return self._binary("sub", y)

    def __mul__(self, y: Leaves | Scalar) -> Leaves:
        return self._binary("mul", y)

    def __truediv__(self, y: Leaves | Scalar) -> Leaves:
        return self._binary("div", y)

    __radd__, __rmul__ = __add__, __mul__

    def __neg__(self) -> Leaves:
        return self._unary("neg")

    def maximum(self, y: Leaves | Scalar) -> Leaves:
        """The larger of two, elementwise."""
        if isinstance(y, Tensor):
            return self.each(lambda x: torch.maximum(x, _like(y, x)))
        return self._binary("maximum" if isinstance(y, Leaves) else "clamp_min", y)

    def minimum(self, y: Leaves | Scalar) -> Leaves:
        """The smaller of two, elementwise."""
        if isinstance(y, Tensor):
            return self.each(lambda x: torch.minimum(x, _like(y, x)))
        return self._binary("minimum" if isinstance(y, Leaves) else "clamp_max", y)

    def abs(self) -> Leaves:
        """Absolute values."""
        return self._unary("abs")

    def sign(self) -> Leaves:
        """Signs: -1, 0 or 1."""
        return self._unary("sign")

    def sqrt(self) -> Leaves:
        """Square roots; the derivative at 0 is 0, not infinity."""
        if one_by_one() or any(x.requires_grad for x in self.tensors):
            return self.each(lambda x: torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0))
        return self._unary("sqrt")

    def lerp(self, y: Leaves, weight: Scalar) -> Leaves:
        """``x + weight·(y - x)``."""
        if one_by_one() or isinstance(weight, Tensor):
            return self.each(lambda a, b: torch.lerp(a, b, _like(weight, a)), y)
        return Leaves(torch._foreach_lerp(self.tensors, y.tensors, weight))

    def add_product(self, y: Leaves, z: Leaves, weight: Scalar = 1.0) -> Leaves:
        """``x + weight·y·z``."""
        if one_by_one() or isinstance(weight, Tensor):
            return self + y * z * weight
        return Leaves(torch._foreach_addcmul(self.tensors, y.tensors, z.tensors, weight))

    def each(self, f: Callable[..., Tensor], *others: Leaves) -> Leaves:
        """A function of tensors, one by one: of each of these, and the same of the others."""
        return Leaves([f(*xs) for xs in zip(self.tensors, *(o.tensors for o in others), strict=True)])

    def norm(self, p: float = 2.0) -> Leaves:
        """The p-norm of each tensor as a vector, a 0-d tensor each; of an empty one, 0."""
        return Leaves(norms(self.tensors, p))

    def __gt__(self, y: Scalar) -> Leaves:
        return self.each(lambda x: x > y)

    def _pairs(self, y: Leaves) -> Any:
        return zip(self.tensors, y.tensors, strict=True)

    def _unary(self, name: str) -> Leaves:
        if one_by_one():
            return self.each(getattr(torch, name))
        return Leaves(getattr(torch, f"_foreach_{name}")(self.tensors))

    def _binary(self, name: str, y: Leaves | Scalar) -> Leaves:
        single, foreach = getattr(torch, name), getattr(torch, f"_foreach_{name}")
        if isinstance(y, Leaves):
            if one_by_one():
                return Leaves([single(a, b) for a, b in self._pairs(y)])
            return Leaves(foreach(self.tensors, y.tensors))
        # Foreach can't differentiate by a shared operand, and doesn't subtract one.
        if one_by_one() or (isinstance(y, Tensor) and (y.requires_grad or name == "sub")):
            return self.each(lambda x: single(x, _like(y, x)))
        return Leaves(foreach(self.tensors, _like(y, self.tensors[0])))


def where(condition: Leaves | Tensor | bool, a: Leaves | Scalar, b: Leaves | Scalar) -> Any:
    """The first where a condition holds, else the second.

    Args:
        condition: bool leaves, or one 0-d bool tensor, or a bool.
        a: leaves, or a scalar.
        b: leaves, or a scalar.

    Returns:
        Leaves, or a scalar if nothing is leaves.
    """
    if isinstance(condition, bool):
        return a if condition else b
    n = next((len(v.tensors) for v in (condition, a, b) if isinstance(v, Leaves)), None)
    if n is None:
        return torch.where(condition, a, b)  # type: ignore[arg-type]
    like = next(v for v in (a, b, condition) if isinstance(v, Leaves))
    columns = (v if isinstance(v, Leaves) else Leaves([v] * n) for v in (condition, a, b))  # type: ignore[list-item]
    c, x, y = columns
    return like.each(lambda _, c, x, y: torch.where(c, x, y), c, x, y)


def decayed(g: Leaves, x: Leaves, rate: Scalar) -> Leaves:
    """``g + rate·x``, the decay of weights."""
    return g if not isinstance(rate, Tensor) and rate == 0 else g + x * rate


def smaller(a: Scalar, b: Scalar) -> Scalar:
    """The smaller of two scalars."""
    return _extreme(min, torch.minimum, a, b)


def larger(a: Scalar, b: Scalar) -> Scalar:
    """The larger of two scalars."""
    return _extreme(max, torch.maximum, a, b)


def _extreme(of_numbers: Callable[..., Any], of_tensors: Callable[..., Any], a: Scalar, b: Scalar) -> Any:
    if not (isinstance(a, Tensor) or isinstance(b, Tensor)):
        return of_numbers(a, b)
    like = a if isinstance(a, Tensor) else b
    assert isinstance(like, Tensor)
    return of_tensors(*(torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in (a, b)))


def norms(xs: Sequence[Tensor], p: float) -> list[Tensor]:
    """The p-norm of every tensor of a list as a vector; of an empty one, 0."""
    return [torch.linalg.vector_norm(x, p) if x.numel() else x.new_zeros(()) for x in xs]


def _like(y: Any, x: Tensor) -> Any:
    """A 0-d tensor in the dtype of x, so that it does not promote a parameter that is 0-d itself."""
    return y.to(x.dtype) if isinstance(y, Tensor) and y.dtype != x.dtype else y
