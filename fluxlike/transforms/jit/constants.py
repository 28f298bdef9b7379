"""`Constants`: the values that a trace holds for, found again where a call has the same ones."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from fluxlike.transforms.outside import attributes_in
from fluxlike.trees.constants import same_constant
from fluxlike.trees.nodes import as_now

__all__ = ["Constants"]


class Constants:
    """Constants as they are now: a set that is changed later is another value.

    Equal ones may give other results, such as 0.0 and -0.0, or {1} and {True}. What can have such a double
    is compared by what it is written as, and all else by ``==``, at once. Of an object with attributes,
    these count too: it may be equal to itself, and not to what it was.

    Args:
        values: the constants.

    Attributes:
        values: as given, with containers as they were then.
        types: their classes.
    """

    def __init__(self, values: Iterable[Any]) -> None:
        self.values = tuple(map(as_now, values))
        self.types = tuple(map(type, self.values))
        self._attributes = [(n, held) for n, x in enumerate(self.values) if (held := attributes_in(x))]

    def agree(self, values: tuple[Any, ...], /) -> bool:
        """Whether others are these; objects that comparison gives no truth for are only themselves."""
        if tuple(map(type, values)) != self.types:
            return False
        own = self.values
        if any(values[n] is not own[n] for n in self._doubled):
            values, own = self._written(values), self._own_written
        return _equal(values, own) and all(_alike(values[n], held) for n, held in self._attributes)

    @cached_property
    def _doubled(self) -> list[int]:
        return [n for n, x in enumerate(self.values) if _has_double(x)]

    @cached_property
    def _own_written(self) -> tuple[Any, ...]:
        return self._written(self.values)

    def _written(self, values: tuple[Any, ...]) -> tuple[Any, ...]:
        written = list(values)
        for n in self._doubled:
            written[n] = _in_full(values[n])
        return tuple(written)


def _equal(values: tuple[Any, ...], own: tuple[Any, ...]) -> bool:
    try:
        if values == own:
            return True
    except (ValueError, RuntimeError, TypeError):
        pass
    return all(map(same_constant, values, own))


def _alike(x: Any, held: dict[str, Any]) -> bool:
    now = attributes_in(x)
    return now.keys() == held.keys() and all(map(same_constant, now.values(), held.values()))


_CONTAINERS = (tuple, set, frozenset)  # those that are leaves: sets, and what is in them
_FLOATS = (float, complex, np.inexact)


def _has_double(x: Any) -> bool:
    """Whether an equal object of the class may be another value."""
    if isinstance(x, _FLOATS):
        return not x.real or not x.imag if isinstance(x, (complex, np.complexfloating)) else not x
    return isinstance(x, _CONTAINERS)


def _in_full(x: Any) -> Any:
    """What is equal where class and value are, the sign of a zero and NaN among them."""
    if isinstance(x, _CONTAINERS):
        inner = map(_in_full, x)
        return type(x), tuple(inner) if isinstance(x, tuple) else frozenset(inner)
    return type(x), repr(x) if isinstance(x, _FLOATS) else x
