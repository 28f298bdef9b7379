"""What an argument is, and how it is written: the words of errors about arguments in the wrong order."""

from __future__ import annotations

import functools
import types
from typing import Any

__all__ = ["found", "is_plain_function", "written"]

_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial)


def is_plain_function(x: object, /) -> bool:
    """Whether `x` is a function, and no model that can be called."""
    return isinstance(x, _FUNCTIONS)


def found(x: object, /) -> str:
    """What was found, such as ``a Chain`` or ``the function relu``."""
    name = getattr(x, "__name__", "")
    if is_plain_function(x) and name.isidentifier():
        return f"the function {name}"
    kind = "function" if is_plain_function(x) else type(x).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"


def written(x: object, otherwise: str, /) -> str:
    """How an argument is written: a number, a text or a named function as it is, else by another name."""
    if isinstance(x, (bool, int, float, complex, str)):
        return repr(x)
    name: Any = getattr(x, "__name__", "") if is_plain_function(x) else ""
    return name if name.isidentifier() else otherwise
