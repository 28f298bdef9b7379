"""A warning where a function of JAX is traced again and again because one value changes."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["Retraced"]

_MANY = 8

Described = Sequence[tuple[str, str, str]]  # of each leaf: its path, what it is, what to do if that changes


class Retraced:
    """Counts, for each path, the traces that were made because something else stood there.

    Args:
        name: what the function is called in the warning.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._last: dict[Any, Described] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, structure: Any, now: Described) -> None:
        """Compare a new trace with the last one of its structure; warn of the eighth at one path."""
        with self._lock:
            before = self._last.pop(structure, now)
            self._last[structure] = now
            if len(self._last) > _MANY:
                del self._last[next(iter(self._last))]
        for (path, old, _), (_, new, hint) in zip(before, now, strict=True):
            if old == new:
                continue
            self._counts[path] += 1
            if self._counts[path] == _MANY - 1:
                warnings.warn(
                    f"from_jax: {self._name} was traced {_MANY} times because {path} changed, at last from "
                    f"{old} to {new}; {hint}",
                    stacklevel=4,
                )
