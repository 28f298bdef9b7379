"""What layers answer to names and arguments that modules of torch have: an error, and what to write."""

from __future__ import annotations

from typing import Any

from fluxlike.advice import OF_LAYERS, Absent, teaching
from fluxlike.trees.functor import on_register

__all__ = ["answer"]


def answer(cls: Any, /) -> None:
    """Give a class of layers what it says to what it does not have, unless it has its own way."""
    if not cls.__module__.startswith("fluxlike.layers.") or hasattr(cls, "__getattr__"):
        return
    teaching(cls)
    for name, write in OF_LAYERS.items():
        if not hasattr(cls, name):
            setattr(cls, name, Absent(name, write))
    cls.__dir__ = _present


def _present(layer: Any) -> list[str]:
    return [name for name in object.__dir__(layer) if name not in OF_LAYERS or hasattr(layer, name)]


on_register(answer)
