"""A program of JAX as an operator of torch, and as a node of autograd.

The operator ``fluxlike::jax_program`` is what torch maps, fakes and records. The derivatives of a program are
programs too, so they have derivatives in their turn, in reverse and in forward mode.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike._private.tracing import concrete
from fluxlike.bridges.jax.package import torch_dtype
from fluxlike.bridges.jax.programs import Program, Pull
from fluxlike.transforms.custom import is_differentiated, keep_nothing, stop_gradient
from fluxlike.transforms.engine.link import link

__all__ = ["call"]

_numbers = itertools.count()
_lock = threading.Lock()
_programs: weakref.WeakValueDictionary[int, Program] = weakref.WeakValueDictionary()
_known: weakref.WeakKeyDictionary[Program, int] = weakref.WeakKeyDictionary()
_recorded: dict[int, Program] = {}  # those that a graph calls by number


@torch.library.custom_op(
    "fluxlike::jax_program", mutates_args=(), schema="(int number, Tensor[] tensors) -> Tensor[]"
)
def _operator(number: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    return _programs[number](tensors)


def _number(program: Program) -> int:
    """The number by which the operator knows a program, for as long as it is there."""
    with _lock:
        number = _known.get(program)
        if number is None:
            number = _known[program] = next(_numbers)
            _programs[number] = program
        return number


@_operator.register_fake
def _fake(number: int, tensors: Sequence[Tensor]) -> list[Tensor]:
    program = _programs[number]
    if any(type(x) is not Tensor for x in tensors):  # a graph may be recorded, which knows the number alone
        _recorded[number] = program
    return [_made(torch.empty, y, tensors[0]) for y in program.outputs]


def _made(make: Callable[..., Tensor], shape: Any, like: Tensor) -> Tensor:
    return make(shape.shape, dtype=torch_dtype("a result", shape.dtype), device=like.device)


def _mapped(info: Any, in_dims: Any, number: int, tensors: Sequence[Tensor]) -> Any:
    program = _programs[number].mapped(in_dims[1], info.batch_size)
    return _operator(_number(program), tensors), [0] * len(program.outputs)


_operator.register_vmap(_mapped)


def call(program: Program, tensors: Sequence[Tensor], /) -> list[Tensor]:
    """The results of a program, differentiable under every transform."""
    if not tensors:
        return program([])
    if not program.floats or not any(map(is_differentiated, tensors)):
        return _operator(_number(program), list(tensors))
    reached = program.reached
    wanted = [n for n, x in enumerate(tensors) if x.requires_grad and reached[n]]
    back = None
    if wanted and _keeps(tensors):
        results, back = program.forward(tensors, wanted)
    else:
        results = _operator(_number(program), stop_gradient(list(tensors)))
    rule = _Rule(program, reached, wanted, back)
    linked = link(rule, [results[n] for n in program.floats], tensors)
    for n, y in zip(program.floats, linked, strict=True):
        results[n] = y
    return results


def _keeps(tensors: Sequence[Tensor]) -> bool:
    """Whether a backward pass may use what its forward pass kept, outside of it all."""
    plain = all(type(x) in (Tensor, torch.nn.Parameter) and not x.is_meta for x in tensors)
    return plain and concrete() and torch.is_grad_enabled() and not keep_nothing.get()


class _Rule:
    """The derivatives of one call of a program."""

    def __init__(
        self, program: Program, reached: Sequence[bool], wanted: Sequence[int], back: Pull | None
    ) -> None:
        self._program, self._reached = program, reached
        self._wanted, self._back = wanted, back

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * len(inputs)
        if all(c is None for c in cotangents):
            return found
        shapes = [self._program.outputs[n] for n in self._program.floats]
        given = [
            _made(torch.zeros, y, inputs[0]) if c is None else c
            for c, y in zip(cotangents, shapes, strict=True)
        ]
        if self._back is not None and not torch.is_grad_enabled() and not functorch.active():
            wanted, grads = self._wanted, self._back(given)
        else:
            wanted = [n for n, one in enumerate(self._reached) if one and needed[n]]
            grads = call(self._program.pulled(wanted), [*inputs, *given]) if wanted else []
        for n, g in zip(wanted, grads, strict=True):
            found[n] = g
        return found

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        moved = [n for n, t in enumerate(tangents) if t is not None]
        return call(self._program.pushed(moved), [*inputs, *[t for t in tangents if t is not None]])
