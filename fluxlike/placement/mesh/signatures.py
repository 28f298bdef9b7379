"""The arguments of a function by their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

__all__ = ["bound", "named"]


def bound(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /
) -> inspect.BoundArguments:
    """The arguments of a call, those alone that are given."""
    return _signature(func).bind(*args, **kwargs)


def named(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> dict[str, Any]:
    """The arguments of a call by their names, with the defaults of the others."""
    found = bound(func, args, kwargs)
    found.apply_defaults()
    return found.arguments


@cache
def _signature(func: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(func)
