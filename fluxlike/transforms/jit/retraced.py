"""Noticing that a function is traced again and again because one value changes."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from fluxlike.transforms.jit.arguments import Static

__all__ = ["Retraced"]

_MANY = 8


class Retraced:
    """Counts, for each path, the traces that were made because something else stood there.

    Args:
        name: what the function is called in the warning.
        dynamic: how to have sizes that change, if there is a way.
    """

    def __init__(
        self, name: str, dynamic: str = "write jit(…, dynamic=True) for sizes that change, or "
    ) -> None:
        self._name, self._dynamic = name, dynamic
        self._counts: Counter[str] = Counter()

    def note(self, earlier: Sequence[Any], trace: Any) -> None:
        """Compare a new trace with the last one of its structure; warn of the eighth change at one path."""
        last = next((t for t in earlier if t.signature.treedef == trace.signature.treedef), None)
        if last is None:
            return
        for path, before, now, hint in _differences(last, trace, self._dynamic):
            self._counts[path] += 1
            if self._counts[path] == _MANY - 1:
                warnings.warn(
                    f"{self._name} was traced {_MANY} times because {path} changed, at last from {before} to "
                    f"{now}; {hint}",
                    stacklevel=5,
                )


def _differences(a: Any, b: Any, dynamic: str) -> Iterator[tuple[str, str, str, str]]:
    """What differs between two traces of one structure: a path, what was and is there, what to do."""
    before, now = a.signature.described, b.signature.described
    for place, path in enumerate(a.signature.paths):
        x, y = before[place], now[place]
        if x != y:
            yield f"the argument {path}", x, y, _hint(b.signature, place, dynamic)
    for s, t in zip(a.settings, b.settings, strict=False):
        if isinstance(s, Static) and isinstance(t, Static) and s != t:
            hint = "leave it out of static=, or hold it as a tensor"
            yield f"the static argument {s.name!r}", repr(s.value), repr(t.value), hint


def _hint(signature: Any, place: int, dynamic: str) -> str:
    if place in signature.input_at:
        return f"{dynamic}pad to one size"
    kind = signature.kind(place)
    if kind is float:
        return "declare it by functor(scalars=…), or hold it as a 0-d tensor"
    if kind in (int, bool):
        return "hold it as a tensor, such as torch.tensor(3)"
    if kind is str:
        return "each string is compiled anew, so pass few different ones"
    if issubclass(kind, Tensor):
        return "dense tensors are inputs, others are static"
    return "hold the same object from call to call; functions made anew at each call are never equal"
