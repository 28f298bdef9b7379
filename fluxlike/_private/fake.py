"""The one file that runs functions of tensors for their shapes alone (private parts of torch)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

__all__ = ["NEEDS_A_VALUE", "is_stand_in", "shapes", "stand_ins", "unlogged", "value_asked", "without_values"]

Shape = tuple[tuple[int, ...], torch.dtype]

#: What is raised where a function asks for the value of a tensor, or makes a shape of it.
NEEDS_A_VALUE = (DataDependentOutputException, DynamicOutputShapeException)

_inside: ContextVar[bool] = ContextVar("fluxlike_stand_ins", default=False)
_unlogged: ContextVar[bool] = ContextVar("fluxlike_unlogged", default=False)


def _is_wanted(_: logging.LogRecord) -> bool:
    return not _unlogged.get()


logging.getLogger("torch._subclasses.fake_tensor").addFilter(_is_wanted)


@contextmanager
def unlogged() -> Iterator[None]:
    """Keep torch from logging what its fake tensors raise, in this thread alone."""
    token = _unlogged.set(True)
    try:
        yield
    finally:
        _unlogged.reset(token)


def shapes(f: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Shape], /) -> list[Shape]:
    """The shapes and dtypes of what a function returns, for those of its inputs; nothing is computed."""
    with stand_ins():
        given = [torch.empty(size, dtype=dtype) for size, dtype in inputs]
        return [(tuple(map(int, y.shape)), y.dtype) for y in f(given)]


@contextmanager
def stand_ins() -> Iterator[None]:
    """A scope in which every tensor that is made has a shape, a dtype and a device, and no memory."""
    token = _inside.set(True)
    try:
        with unlogged(), FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        _inside.reset(token)


def is_stand_in(x: Tensor, /) -> bool:
    """Whether a tensor has a shape, a dtype and a device, but no memory: in `stand_ins`, or a trace."""
    return isinstance(x, FakeTensor)


def value_asked(error: BaseException, /) -> str | None:
    """What asked for a value that a tensor without memory doesn't have; None for an error of another kind."""
    if isinstance(error, NEEDS_A_VALUE):
        asked = str(error.func)
        return ".item(), if, float() or int()" if asked == "aten._local_scalar_dense.default" else asked
    said = str(error)
    if "() is not supported for tensor subclasses" in said:
        return ".numpy() or .tolist()"
    return "its text in a format" if "FakeTensor.__format__" in said else None


def without_values() -> bool:
    """Whether this is inside `stand_ins`."""
    return _inside.get()
