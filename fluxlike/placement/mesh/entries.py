"""Entries: nodes of a tree that stand in the place of a parameter, and hold what is kept for it."""

from __future__ import annotations

from typing import TypeVar

__all__ = ["belongs_to_parameter", "is_entry"]

C = TypeVar("C", bound=type)

_entries: set[type] = set()


def belongs_to_parameter(cls: C, /) -> C:
    """Say that the objects of a class stand in the place of a parameter, as in the state of an optimiser.

    Over a mesh, what they hold lies as the parameter does, and a plan is asked with the parameter's path.
    """
    _entries.add(cls)
    return cls


def is_entry(x: object, /) -> bool:
    """Whether `x` stands in the place of a parameter, and is none."""
    return type(x) in _entries
