"""The function that a transform gets, which comes before the model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from fluxlike.trees.trainables import trainables

__all__ = ["require_function"]

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType, partial)
_OF_ANY_OUTPUT = ("jacobian", "pullback", "pushforward")


def require_function(name: str, f: Any, args: Sequence[Any], argnums: int | Sequence[int], /) -> None:
    """Refuse a model in the place of the function.

    Args:
        name: the transform, for errors.
        f: what it got as the function.
        args: the arguments.
        argnums: which of them are differentiated; those that there are not are passed over.

    Raises:
        TypeError: `f` can't be called; or it has parameters, and what is differentiated is a function
            without any.
    """
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    differentiated = [args[n] for n in numbers if -len(args) <= n < len(args)]
    if callable(f) and not any(isinstance(x, _FUNCTIONS) for x in differentiated):
        return
    say = "f" if name in _OF_ANY_OUTPUT else "loss"
    right, kind = f"{name}({say}, model, x, y)", type(f).__name__
    for x in differentiated:
        if isinstance(x, _FUNCTIONS) and trainables(f) and not trainables(x):
            raise TypeError(
                f"{name} takes the function first, found a {kind} and then a function; write {right}, not "
                f"{name}(model, {say}, x, y)"
            )
    if not callable(f):
        raise TypeError(
            f"{name} takes a function and its arguments, found {kind} as the function; write "
            f"{right}, not {name}({say}(model, x, y), model)"
        )
