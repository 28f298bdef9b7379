"""One part of a file that `save` wrote: what the file describes below one place of its tree."""

from __future__ import annotations

import ast
from typing import Any

from fluxlike.files.description import Description, path_steps
from fluxlike.files.printing import shown

__all__ = ["part_of", "parts_in"]


def part_of(about: Description, part: str, title: str, /) -> tuple[str, Description]:
    """The path of a part, and what a file says of it, with paths that start there.

    Args:
        about: what the file says of its tree.
        part: a key of the tree, or the path of a place in it, written as in `at`.
        title: the file, in errors.

    Raises:
        TypeError: the part is no text.
        ValueError: the file has no such part; it names those that it has.
    """
    if not isinstance(part, str):
        raise TypeError(f"part is a {type(part).__name__}, not a key or a path such as \"['model']\"")
    places = dict.fromkeys([*about.nodes, *about.leaves])
    path = part if part in places else f"[{part!r}]"
    if path not in places:
        wanted = _keys(part)
        path = next((p for p in places if _keys(p) == wanted), "")
    if not path:
        known = ", ".join(map(shown, parts_in(about)[:10])) or "none"
        raise ValueError(f"{title} has no part {shown(part)}; its parts are: {known}")
    return path, Description(_below(about.leaves, path), _below(about.nodes, path), about.checksums)


def parts_in(about: Description, /) -> list[str]:
    """The parts at the top of a tree, sorted and named as `part_of` takes them; none of a single leaf."""
    first = dict.fromkeys(next(path_steps(path)) for path in (*about.nodes, *about.leaves) if path)
    return sorted(_key(step) if type(_key(step)) is str else step for step in first)


def _below(described: dict[str, Any], path: str) -> dict[str, Any]:
    """What is at a place or below it, by the rest of the path."""
    found = {p[len(path) :]: x for p, x in described.items() if p.startswith(path)}
    return {rest: x for rest, x in found.items() if not rest or rest[0] in ".["}


def _keys(path: str) -> tuple[Any, ...]:
    """The keys of a path, in whatever way it is written; the first dot may be left out."""
    return tuple(_key(step) for step in path_steps(path if path[:1] in (".", "[") else f".{path}"))


def _key(step: str) -> Any:
    if not step.startswith("["):
        return step.removeprefix(".")
    try:
        return ast.literal_eval(step[1:-1])
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return step
