"""Paths: the names of places in a tree, as text such as ``.layers[2].bias`` or ``['head']``."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import optree

from fluxlike.trees.containers import is_known
from fluxlike.trees.functor import NAMESPACE
from fluxlike.trees.step_names import step_names, step_of_name

__all__ = [
    "Step", "children", "descend", "dotted", "is_node", "lookup", "replace", "steps", "text_of",
]  # fmt: skip


class Step(NamedTuple):
    """One step down from a node: its text, and the entry under which the node keeps the child."""

    text: str
    entry: Any


def _step(entry: optree.PyTreeEntry) -> Step:
    return Step(entry.codify(""), entry.entry)


def steps(treedef: optree.PyTreeSpec, /) -> list[str]:
    """The text of the step to each child of the root."""
    return [entry.codify("") for entry in _entries(treedef)]


def _entries(treedef: optree.PyTreeSpec) -> list[optree.PyTreeEntry]:
    return [accessor[0] for accessor in treedef.one_level().accessors()]  # type: ignore[union-attr]


def dotted(path: str, /) -> str:
    """The path of a leaf as torch writes names: ``.layers[0]['w']`` as ``layers.0.w``."""
    return ".".join(a or b or c for a, b, c in re.findall(r"\.([^.\[\]]+)|\['([^']*)'\]|\[([^\]']*)\]", path))


def is_node(x: Any, /) -> bool:
    """Whether `x` is a container or an object of a registered class."""
    if optree.tree_is_leaf(x, none_is_leaf=True, namespace=NAMESPACE):
        return is_known(type(x))  # which registers it on first sight
    return True


def children(node: Any, /) -> Iterator[tuple[Step, Any]]:
    """Each child of a node, with the step to it; nothing for a leaf."""
    if not is_node(node):
        return
    found, treedef = _one_level(node)
    for entry, child in zip(_entries(treedef), found, strict=True):
        yield _step(entry), child


def _one_level(node: Any) -> tuple[list[Any], optree.PyTreeSpec]:
    root = iter([False])  # the first object asked about is the node itself
    return optree.tree_flatten(
        node, is_leaf=lambda _: next(root, True), none_is_leaf=True, namespace=NAMESPACE
    )


_STEP = re.compile(r"""\.?([^\W\d]\w*) | \[( '[^']*' | "[^"]*" | [^\[\]'"]+ )\]""", re.VERBOSE)


def lookup(tree: Any, path: str, /) -> tuple[tuple[Any, ...], Any]:
    """The entries on the way to the place that `path` names, and what is there.

    A path is read as it is printed; the first dot may be left out, keys may be written with either
    quotes, an index into a tuple or list may count from the end, and a layer of a Chain that has a name
    may be written by it, ``['head']`` for ``.layers[1]``.

    Raises:
        ValueError: the path can't be read.
        KeyError: there is no such place; it says how far the path goes and what is there.
    """
    node, done, rest, entries = tree, "", path, []
    while rest:
        found = list(children(node))
        step, child, rest = _printed(found, rest) or _written(node, found, rest, path, done)
        entries.append(step.entry)
        node, done = child, done + step.text
    return tuple(entries), node


_Found = tuple[Step, Any, str]  # a step, where it leads, and the rest of the path


def _printed(found: list[tuple[Step, Any]], rest: str) -> _Found | None:
    """The longest step that the rest of a path starts with, to the letter."""
    fits = [
        (step, child, rest[len(step.text) :])
        for step, child in found
        if rest.startswith(step.text) and rest[len(step.text) : len(step.text) + 1] in ("", ".", "[")
    ]
    return max(fits, key=lambda fit: len(fit[0].text), default=None)


def _written(node: Any, found: list[tuple[Step, Any]], rest: str, path: str, done: str) -> _Found:
    """The step that the rest of a path starts with, in another way of writing."""
    match = _STEP.match(rest)
    if match is None:
        raise ValueError(
            f"{path!r} is not a path: can't read {rest!r}; a path is written as '.layers[2].bias' or "
            "\"['head'].weight\""
        )
    name, key = match.groups()
    try:
        wanted = name if name is not None else ast.literal_eval(key)
    except (ValueError, SyntaxError):
        raise ValueError(
            f"{path!r} is not a path: write the key {key!r} as a literal, [2] or ['head']"
        ) from None
    if isinstance(wanted, int) and wanted < 0 and isinstance(node, (tuple, list)):
        wanted += len(found)
    rest = rest[match.end() :]
    named = step_of_name(node, wanted)
    if named is not None and key is not None:
        return cast(_Found, _printed(found, named + rest))
    for step, child in found:
        if step.entry == wanted or step.text == f".{wanted}":
            return step, child, rest
    if named is not None:
        by_name, by_index = f"{done}[{name!r}]{rest}", f"{done}{named}{rest}"
        raise KeyError(
            f"no place {path!r}: the layer named {name!r} is {done}{named}; write {by_name!r} or {by_index!r}"
        )
    _, names = step_names(node) or ("", None)
    texts = [step.text for step, _ in found] + [f"[{name!r}]" for name in names or ()]
    known = ", ".join(texts) or "nothing, it is a leaf"
    raise KeyError(f"no place {path!r}: {done or 'the root'} is a {type(node).__name__} holding {known}")


def text_of(tree: Any, entries: tuple[Any, ...], /) -> str:
    """The path of the place at the end of a way down."""
    path = ""
    for entry in entries:
        step, tree = next((s, child) for s, child in children(tree) if s.entry == entry)
        path += step.text
    return path or "the root"


def descend(node: Any, entries: tuple[Any, ...], /) -> Any:
    """What stands at the end of a way down."""
    for entry in entries:
        node = next(child for step, child in children(node) if step.entry == entry)
    return node


def replace(tree: Any, new: dict[tuple[Any, ...], Any], /) -> Any:
    """A tree with other values at some places; what is not on the way to them is kept as it is."""
    if () in new:
        return new[()]
    below: dict[Any, dict[tuple[Any, ...], Any]] = {}
    for entries, value in new.items():
        below.setdefault(entries[0], {})[entries[1:]] = value
    found, treedef = _one_level(tree)
    changed = [
        replace(child, below[entry.entry]) if entry.entry in below else child
        for entry, child in zip(_entries(treedef), found, strict=True)
    ]
    return treedef.unflatten(changed)
