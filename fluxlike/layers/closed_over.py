"""Layers that a function among the steps of another layer uses, and that are in no tree because of it."""

from __future__ import annotations

import dis
import types
import warnings
from collections.abc import Iterator
from typing import Any

from torch import nn

from fluxlike.trees.functor import spec_of
from fluxlike.trees.show import plural
from fluxlike.trees.trainables import trainables

__all__ = ["warn_of_layers_in"]


def warn_of_layers_in(own: str, step: int, f: Any) -> None:
    """Warn of a function that names layers with parameters, by its closure or as globals.

    Nobody but the function knows of them: they would not be trained, saved, moved or counted.

    Args:
        own: the class of the layer that has the step.
        step: its number.
        f: the step; only functions of Python are looked into.
    """
    if not isinstance(f, types.FunctionType) or f.__module__.partition(".")[0] in ("fluxlike", "torch"):
        return
    for name, layer in _named(f):
        count = _parameters(layer)
        if count:
            kind = type(layer).__name__
            warnings.warn(
                f"step {step} of {own}, the function {f.__name__}, uses {name}, a {kind} with "
                f"{plural(count, 'parameter')} that is in no tree then: not trained, not saved, not moved. "
                f"Write {name} itself as a step, or a class under @fluxlike.functor with it as an attribute",
                stacklevel=5,
            )


def _named(f: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """What a function finds outside of itself, by the names in its code."""
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # it has no value yet
            continue
    for name in dict.fromkeys(_globals(f.__code__)):
        if name in f.__globals__:
            yield name, f.__globals__[name]


def _globals(code: types.CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "LOAD_GLOBAL":
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _globals(constant)


def _parameters(x: Any) -> int:
    """How many parameters a layer has, or a module of torch; none of what is neither."""
    if isinstance(x, nn.Module):
        return sum(p.numel() for p in x.parameters())
    if isinstance(x, type) or not callable(x) or spec_of(type(x)) is None:
        return 0
    return sum(p.numel() for p in trainables(x))
