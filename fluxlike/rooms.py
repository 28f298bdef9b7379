"""Rooms: packages of public names, which are imported when they are used first, where that is wanted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fluxlike.advice import absent

__all__ = ["room"]


def room(
    name: str, public: Collection[str], homes: Mapping[str, str] | None = None, /
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and the `__dir__` of a package.

    Args:
        name: its full name.
        public: its public names.
        homes: the full name of the module of each that is imported when it is used first; a name that is its
            own module is that module. (default: none is)

    Returns:
        Two functions: one imports a name, once, or raises the AttributeError that says what to write for it;
        the other lists the public names.
    """
    homes = homes or {}

    def found(asked: str, /) -> Any:
        if asked not in homes:
            raise absent(name, asked, public)
        module = importlib.import_module(homes[asked])
        value = getattr(module, asked, module)
        setattr(sys.modules[name], asked, value)
        return value

    return found, lambda: sorted(public)
