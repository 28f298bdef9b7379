"""torchvision for tests: imported so that it loads beside a CPU build of torch, or a reason to skip."""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks import torchvision_here

__all__ = ["torchvision"]


def torchvision() -> ModuleType:
    """The package, or a skip that says why."""
    if isinstance(_found, str):
        pytest.skip(_found)
    return _found


def _load() -> ModuleType | str:
    try:
        return torchvision_here.torchvision()
    except ImportError as error:
        return f"torchvision can't be imported: {error}"


_found = _load()
