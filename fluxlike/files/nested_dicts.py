"""Nested dicts of tensors as names in dots."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from fluxlike.files.printing import shown

__all__ = ["Named", "named_tensors"]

_LONGEST_NAMES = 100_000_000  # characters, in all names together
_DEEPEST = 100


@dataclass
class Named:
    """What nested dicts hold, by name in dots.

    Attributes:
        tensors: the tensors.
        others: the kinds of the other values.
        advice: what to write instead where they are in the way, if anything.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    advice: str = ""


def named_tensors(found: Any, part: str | None, title: str, /) -> Named:
    """The tensors of nested dicts by name, in dots; `part` chooses one of the dicts at the top.

    Raises:
        ValueError: there is no such part, or no dict.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"{title} holds a {type(found).__name__}, not tensors by name")
    parts = [name for name, value in found.items() if isinstance(name, str) and isinstance(value, Mapping)]
    if part is not None:
        if part not in parts:
            known = ", ".join(map(shown, parts[:10])) or "none"
            raise ValueError(f"{title} has no part {part!r}; its parts are: {known}")
        found = found[part]
    named = Named(advice=_advice([] if part is not None else parts))
    queue: list[tuple[str, Any, int]] = [("", found, 0)]
    taken = 0
    while queue:
        name, value, depth = queue.pop()
        if isinstance(value, Mapping):
            taken += sum(len(name) + len(_key(k, title)) + 10 for k in value)
            if taken > _LONGEST_NAMES or depth > _DEEPEST:
                raise ValueError(f"{title} holds too many dicts, or a dict that holds itself")
            start = f"{name}." if depth else ""
            queue.extend((start + _key(k, title), v, depth + 1) for k, v in reversed([*value.items()]))
        elif name in named.tensors or name in named.others:
            raise ValueError(f"{title} holds {shown(name)} twice")
        elif isinstance(value, Tensor):
            named.tensors[name] = value
        else:
            named.others[name] = type(value).__name__
    return named


def _key(key: Any, title: str) -> str:
    if type(key) not in (str, int):
        raise ValueError(f"{title} has a key of type {type(key).__name__}: {shown(key)}")
    return str(key)


def _advice(parts: list[str]) -> str:
    known = " or ".join(f"part={shown(part)}" for part in parts[:5])
    return f"say which part holds the model: {known}; or " if parts else ""
