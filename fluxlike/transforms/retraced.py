"""A warning where a function is traced again and again because one value changes."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable

__all__ = ["Described", "Retraced"]

_MANY = 8  # so many traces because of one place are worth a warning
_KEPT = 64  # structures of which the last trace is remembered

#: Of each part that a trace depends on: its place, what stands there, what to do if that changes.
Described = Iterable[tuple[str, str, str]]


class Retraced:
    """Counts, for each place, the traces that were made because something else stood there.

    Args:
        name: what the function is called in the warning.
        stacklevel: where the user's call is, as `warnings.warn` counts: 1 is `note` itself.
    """

    def __init__(self, name: str, stacklevel: int) -> None:
        self._name, self._stacklevel = name, stacklevel
        self._last: dict[Hashable, Callable[[], Described]] = {}
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, structure: Hashable, describe: Callable[[], Described]) -> None:
        """Compare a new trace with the last one of its structure; warn of the eighth because of one place."""
        with self._lock:
            last = self._last.pop(structure, None)
            self._last[structure] = describe
            if len(self._last) > _KEPT:
                del self._last[next(iter(self._last))]
        if last is None:
            return
        before = {place: what for place, what, _ in last()}
        for place, now, hint in describe():
            old = before.get(place, now)
            if old == now:
                continue
            self._counts[place] += 1
            if self._counts[place] == _MANY - 1:
                warnings.warn(
                    f"{self._name} was traced {_MANY} times because {place} changed, at last from {old} to "
                    f"{now}; {hint}",
                    stacklevel=self._stacklevel,
                )
