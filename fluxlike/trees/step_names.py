"""Containers: classes that keep layers in a tuple, and the names that they may have for them."""

from __future__ import annotations

from typing import Any

from fluxlike.trees.functor import kinds_of

__all__ = ["holds_steps", "step_names", "step_of_name"]

_containers: dict[type, tuple[str, str]] = {}


def holds_steps(cls: type, steps: str, names: str, /) -> None:
    """Say that a class keeps layers in a tuple at one attribute, and may have names for them at another."""
    _containers[cls] = steps, names


def step_names(node: Any, /) -> tuple[str, list[str] | None] | None:
    """Where a container keeps its layers, and their names if they have any; None if it is none."""
    found = next((_containers[cls] for cls in kinds_of(type(node)) if cls in _containers), None)
    if found is None:
        return None
    names, layers = getattr(node, found[1]), getattr(node, found[0])
    named = isinstance(layers, tuple) and names is not None and len(names) == len(layers)
    return found[0], list(names) if named else None


def step_of_name(node: Any, name: object, /) -> str | None:
    """The path, from a container, of its layer of a name: ``.layers[1]``; None if it has no such layer."""
    attribute, names = step_names(node) or ("", None)
    return f".{attribute}[{names.index(name)}]" if names is not None and name in names else None
