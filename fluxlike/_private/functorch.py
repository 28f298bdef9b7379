"""The one file that touches functorch's interpreter (private parts of torch).

`torch.func.grad` can't be used where `None` must stay apart from zero and trees hold constants, so
a gradient inside functorch's transforms opens a level of its own with these.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor, overrides
from torch._C import _functorch
from torch._functorch import pyfunctorch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

__all__ = [
    "active",
    "at_level",
    "batch_like",
    "differentiable",
    "differentiating",
    "forward_mode",
    "function_modes",
    "grad_level",
    "has_tangent",
    "in_forward_mode",
    "inner",
    "is_batch",
    "jvp",
    "level",
    "level_of",
    "numbers",
    "outside",
    "unwrap",
    "unwrap_dead",
    "vmaps",
    "without_graph",
    "wrap",
]


def active() -> bool:
    """Whether a transform of functorch surrounds this call."""
    return _functorch.peek_interpreter_stack() is not None


def differentiating() -> bool:
    """Whether one of the transforms of functorch that surround this call is a derivative."""
    stack = _functorch.get_interpreter_stack()
    return stack is not None and any(one.key() in _DERIVATIVES for one in stack)


_DERIVATIVES = (_functorch.TransformType.Grad, _functorch.TransformType.Jvp)


@contextmanager
def grad_level() -> Iterator[int]:
    """A level of reverse-mode differentiation, as `torch.func.grad` opens one."""
    level = _functorch._grad_increment_nesting()
    try:
        yield level
    finally:
        _functorch._grad_decrement_nesting()


def in_forward_mode() -> bool:
    """Whether a transform, or a level of ``torch.autograd.forward_ad``, may carry tangents here."""
    return active() or forward_ad._current_level >= 0


def has_tangent(x: Tensor, /) -> bool:
    """Whether a tensor carries a tangent of the innermost transform, or of ``torch.autograd.forward_ad``."""
    top = _functorch.peek_interpreter_stack()
    if top is not None and top.key() != _functorch.TransformType.Jvp:
        return False
    return forward_ad.unpack_dual(x).tangent is not None


def jvp(f: Callable[..., Any], primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...], /) -> Any:
    """``torch.func.jvp``, without the warning of what it loads on its first use."""
    _load_forward_mode()
    return torch.func.jvp(f, primals, tangents)


@cache
def _load_forward_mode() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, used by torch itself
        importlib.import_module("torch._decomp.decompositions_for_jvp")


def forward_mode(enabled: bool, /) -> AbstractContextManager[None]:
    """Turn forward mode on or off: torch turns it off inside the rules of an ``autograd.Function``."""
    return forward_ad._set_fwd_grad_enabled(enabled)


def wrap(x: Tensor, level: int, /) -> Tensor:
    """`x` as a tensor of the level."""
    return _functorch._wrap_for_grad(x, level)


def differentiable(wrapped: Tensor, /) -> Tensor:
    """A tensor of the innermost level, made one that the level's gradients are taken to."""
    allowed = _functorch.get_inplace_requires_grad_allowed()
    _functorch.set_inplace_requires_grad_allowed(True)
    try:
        return wrapped.requires_grad_()
    finally:
        _functorch.set_inplace_requires_grad_allowed(allowed)


def unwrap(x: Tensor, level: int, /) -> Tensor:
    """A tensor of the level as a tensor of the level below."""
    return _functorch._unwrap_for_grad(x, level)


def level_of(x: Tensor, /) -> int:
    """The level that a tensor belongs to: 0 for one of no transform, or of transforms that have closed."""
    return max(0, _functorch.maybe_get_level(x))


def is_batch(x: Tensor, /) -> bool:
    """Whether a tensor is a batch that ``vmap`` made."""
    return _functorch.is_batchedtensor(x)


def inner(x: Tensor, /) -> Tensor:
    """What a tensor of a level wraps."""
    return _functorch.get_unwrapped(x)


def without_graph(x: Tensor, /) -> Tensor:
    """A tensor of a level without its graph of that level; graphs of levels further out stay."""
    return x if is_batch(x) else wrap(inner(x), level_of(x))


def batch_like(x: Tensor, batch: Tensor, /) -> Tensor:
    """`x` made a batch as another one is, of the same level and axis."""
    return _functorch._add_batch_dim(x, _functorch.maybe_get_bdim(batch), _functorch.maybe_get_level(batch))


def numbers(x: Tensor, /) -> Any:
    """The numbers of a tensor on the CPU as numpy has them, with the axes that ``vmap`` maps in front."""
    while level_of(x) > 0:
        axis = _functorch.maybe_get_bdim(x) if is_batch(x) else 0
        x = inner(x).movedim(axis, 0)
    with outside() if active() else nullcontext():
        return x.numpy()


def unwrap_dead(x: Tensor, /) -> Tensor:
    """A tensor without the wrappers of levels that have closed."""
    below = _functorch.unwrap_if_dead(x)
    while below is not x:
        x, below = below, _functorch.unwrap_if_dead(below)
    return x


def outside() -> AbstractContextManager[object]:
    """Leave all transforms of functorch that surround this call, for a while."""
    return pyfunctorch.temporarily_clear_interpreter_stack()


def function_modes() -> list[TorchFunctionMode]:
    """The modes that see the calls of torch's functions here, the innermost first."""
    return overrides._get_current_function_mode_stack()[::-1]


def level() -> int:
    """How many transforms of functorch surround this call."""
    current = _functorch.maybe_current_level()
    return 0 if current is None else current


def vmaps(outer: int = 0, /) -> list[str]:
    """The randomness of each ``vmap`` further in than a level: "error", "same" or "different"."""
    return [
        _functorch.CVmapInterpreterPtr(one).randomness().name.lower()
        for one in _functorch.get_interpreter_stack() or ()
        if one.key() == _functorch.TransformType.Vmap and one.level() > outer
    ]


def at_level(x: Tensor, outer: int, /) -> Tensor | None:
    """A tensor as it is seen from an outer level; None if ``vmap`` made it a batch since then."""
    while _functorch.maybe_get_level(x) > outer:
        if _functorch.is_batchedtensor(x):
            return None
        x = _functorch.get_unwrapped(x)
    return x
