"""The one file that touches functorch's interpreter (private parts of torch).

`torch.func.grad` can't be used where `None` must stay apart from zero and trees hold constants, so
a gradient inside functorch's transforms opens a level of its own with these.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch._C import _functorch

__all__ = ["active", "at_level", "differentiable", "grad_level", "level", "unwrap", "wrap"]


def active() -> bool:
    """Whether a transform of functorch surrounds this call."""
    return _functorch.peek_interpreter_stack() is not None


@contextmanager
def grad_level() -> Iterator[int]:
    """A level of reverse-mode differentiation, as `torch.func.grad` opens one."""
    level = _functorch._grad_increment_nesting()
    try:
        yield level
    finally:
        _functorch._grad_decrement_nesting()


def wrap(x: Tensor, level: int, /) -> Tensor:
    """`x` as a tensor of the level."""
    return _functorch._wrap_for_grad(x, level)


def differentiable(x: Tensor, level: int, /) -> Tensor:
    """`x` as a tensor of the level that the level's gradients are taken to."""
    wrapped = wrap(x, level)
    allowed = _functorch.get_inplace_requires_grad_allowed()
    _functorch.set_inplace_requires_grad_allowed(True)
    try:
        return wrapped.requires_grad_()
    finally:
        _functorch.set_inplace_requires_grad_allowed(allowed)


def unwrap(x: Tensor, level: int, /) -> Tensor:
    """A tensor of the level as a tensor of the level below."""
    return _functorch._unwrap_for_grad(x, level)


def level() -> int:
    """How many transforms of functorch surround this call."""
    current = _functorch.maybe_current_level()
    return 0 if current is None else current


def at_level(x: Tensor, outer: int, /) -> Tensor | None:
    """A tensor as it is seen from an outer level; None if ``vmap`` made it a batch since then."""
    while _functorch.maybe_get_level(x) > outer:
        if _functorch.is_batchedtensor(x):
            return None
        x = _functorch.get_unwrapped(x)
    return x
