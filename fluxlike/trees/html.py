"""Trees in notebooks: the `_repr_html_` of layers and models, which folds.

No script, no style sheet, no colour of its own: it is readable on any background.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from typing import Any

from fluxlike.trees import functor as registry
from fluxlike.trees import paths
from fluxlike.trees.show import Printed, deserves_lines, no_tree, printed, totals, tree_repr, value_text
from fluxlike.trees.structure import flatten

__all__ = ["tree_html"]

Note = Callable[[str], str]

_BOX = "font-family:monospace;line-height:1.5;text-align:left"
_INSIDE = "margin-left:1.2em;padding-left:.5em;border-left:1px solid rgba(128,128,128,.4)"
_QUIET = "opacity:.7"
_MANY = 40  # lines; a larger tree opens with its first level only


def tree_html(tree: Any, /, note: Note = lambda path: "") -> str:
    """A tree as HTML: a line a layer that folds open, with the counts of the `repr`.

    Args:
        tree: any tree.
        note: what to say of a place besides, by its path. (default: nothing)
    """
    try:
        flatten(tree)  # reports what is no tree, a cycle too
        root = printed(tree)
        opened = _size(root) <= _MANY
        body = _item(root, note, True, opened, totals(tree) if root.foot else root.comment)
    except (TypeError, ValueError) as error:  # no tree, but printing must not raise
        body = escape(no_tree(tree, error))
    return f'<div style="{_BOX}">{body}</div>'


def _size(item: Printed) -> int:
    return 1 + sum(map(_size, item.inner))


def _item(item: Printed, note: Note, opened: bool, below: bool, comment: str) -> str:
    """One line; of a node, with what it holds, folded away or not."""
    text = escape(item.label + (_closed(item) if item.foot else item.head))
    said = [f'<span style="{_QUIET}">{escape(part)}</span>' for part in (note(item.path), comment) if part]
    line = " &nbsp;".join([text, *said])
    inside = [_item(inner, note, below, below, inner.comment) for inner in item.inner] or _leaves(item, note)
    if not inside:
        return f"<div>{line}</div>"
    state = " open" if opened and item.inner else ""
    return (
        f'<details{state}><summary style="cursor:pointer">{line}</summary>'
        f'<div style="{_INSIDE}">{"".join(inside)}</div></details>'
    )


def _closed(item: Printed) -> str:
    """A node with lines inside, on one line."""
    name = item.head.removesuffix("(")
    return name if name and not item.arguments else f"{item.head}{item.arguments or '…'}{item.foot}"


def _leaves(item: Printed, note: Note) -> list[str]:
    """What a layer of one line holds, child by child."""
    if registry.spec_of(type(item.node)) is None or not item.comment:
        return []
    return [_leaf(step, child, item.path, note) for step, child in paths.children(item.node)]


def _leaf(step: paths.Step, child: Any, above: str, note: Note) -> str:
    """One of them, which folds if it holds layers."""
    name, path = step.text.removeprefix("."), above + step.text
    if deserves_lines(child):
        inner = printed(child, path, f"{name} = ")
        return _item(inner, note, False, False, inner.comment)
    text = type(child).__name__ if any(True for _ in paths.children(child)) else value_text(child)
    said = note(path)
    quiet = f' &nbsp;<span style="{_QUIET}">{escape(said)}</span>' if said else ""
    return f"<div>{escape(name)} = {escape(text)}{quiet}</div>"


def _repr_html_(self: Any) -> str | None:
    """The folding tree in a notebook, of what prints as a tree."""
    method: Any = type(self).__repr__
    return tree_html(self) if method is tree_repr else None


def _give_html(cls: Any) -> None:
    """Show objects of a registered class as folding trees, unless its author says how to show them."""
    if cls.__repr__ is tree_repr and not hasattr(cls, "_repr_html_"):
        cls._repr_html_ = _repr_html_


registry.on_register(_give_html)
