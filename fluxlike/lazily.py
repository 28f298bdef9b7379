"""Public names that are imported when they are used first: most programs need a few of them."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazily"]


def lazily(package: str, modules: Mapping[str, str], /) -> Callable[[str], Any]:
    """A function that imports a public name of a package.

    Args:
        package: its full name.
        modules: the module of each name, below the package; a name that is its own module is that module.
    """

    def imported(name: str, /) -> Any:
        module = importlib.import_module(f"{package}.{modules[name]}")
        return getattr(module, name, module)

    return imported
