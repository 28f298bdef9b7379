"""Packages that are imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["optional"]


def optional(module: str, what: str, /, install: str = "'fluxlike[training]'") -> Any:
    """A module of a package that may not be there.

    Args:
        module: its name.
        what: what needs it, for the error.
        install: what pip installs it by. (default: the extra of training)

    Raises:
        ImportError: it can't be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"{what} needs {package} ({error}): pip install {install}") from error
