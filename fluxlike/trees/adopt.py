"""What becomes of objects that are put into a model and are no trees, such as torch modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["adopt", "adopted"]

_table: dict[type, Callable[[Any], Any]] = {}


def adopt(cls: type, convert: Callable[[Any], Any], /) -> None:
    """Have `convert` make a tree of the objects of a class, and of its subclasses, put into a model.

    Args:
        cls: the class.
        convert: a function from the object to a tree.

    Raises:
        ValueError: the class is adopted otherwise already.
    """
    known = _table.setdefault(cls, convert)
    if known is not convert:
        raise ValueError(
            f"adopt({cls.__qualname__}): it is adopted already, by {known!r}; say it once of a class, or of "
            "a subclass, which comes before it"
        )


def adopted(x: Any, /) -> Any:
    """The tree that stands for an object, by the nearest class in the table; others are kept."""
    for cls in type(x).__mro__:
        if cls in _table:
            return _table[cls](x)
    return x
