"""What a tensor stands for: an `nn.Parameter`'s value, somebody else's memory, a float while `jit` traces."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeGuard

from torch import Tensor

__all__ = [
    "inside_transform", "is_lent", "is_tensor", "lent", "stands_for_float", "standing_for_floats",
    "value_of",
]  # fmt: skip

#: Whether a transform surrounds the call: inside one, tensors that require grad are its handles.
#: The floor of transforms puts its own test in.
inside_transform: list[Callable[[], bool]] = []


def value_of(x: Tensor, /) -> Tensor:
    """The tensor, without a graph if it is a parameter of torch's that starts one.

    A leaf of autograd that requires grad is read as its value; one that was computed stays
    differentiable, and inside a transform everything does.
    """
    if x.requires_grad and x.grad_fn is None and not any(inside() for inside in inside_transform):
        return x.detach()
    return x


_lent: dict[int, weakref.ref[Tensor]] = {}


def lent(x: Tensor, /) -> Tensor:
    """Say that a tensor's memory is somebody else's, such as a torch module's: no donation writes to it."""
    number = id(x)
    _lent[number] = weakref.ref(x, lambda _: _lent.pop(number, None))
    return x


def is_lent(x: Tensor, /) -> bool:
    """Whether `lent` was said of a tensor: a donation copies it, and leaves it as it is."""
    return bool(_lent) and id(x) in _lent


_floats: ContextVar[Collection[int]] = ContextVar("fluxlike_floats", default=())


@contextmanager
def standing_for_floats(ids: Collection[int], /) -> Iterator[None]:
    """Inside, tensors of these ids are in the places of floats, so `vmap` shares them as it does floats."""
    token = _floats.set(ids)
    try:
        yield
    finally:
        _floats.reset(token)


def stands_for_float(x: Tensor, /) -> bool:
    """Whether a tensor is in the place of a float."""
    floats = _floats.get()
    return bool(floats) and id(x) in floats


def is_tensor(x: object, /) -> TypeGuard[Tensor]:
    """Whether a leaf is a tensor, and not in the place of a float, which is a constant of a tree."""
    return isinstance(x, Tensor) and not stands_for_float(x)
