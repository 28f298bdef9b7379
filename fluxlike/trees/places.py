"""Choosing places in a tree: by a selector, a path, a predicate, or a tuple of these."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import optree

from fluxlike.trees import paths
from fluxlike.trees.found import found, is_plain_function, written
from fluxlike.trees.functor import NAMESPACE
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Entries", "Where", "find_places", "selected_leaves"]

Where = str | Callable[..., Any]
Entries = tuple[Any, ...]  # the way down to a place: attribute names, keys and indices


class _Marker:
    """Stands for one leaf while a selector runs, so that a place is found by identity alone."""

    def __init__(self, index: int, path: str) -> None:
        self.index, self.path = index, path

    def __repr__(self) -> str:
        return f"<the leaf at {self.path}>"


def find_places(
    tree: Any, where: Where | tuple[Where, ...], /, part: type | None = None
) -> tuple[list[Entries], bool]:
    """The places that `where` chooses, and whether they are several by the look of it.

    Args:
        tree: any tree.
        where: places as in `at`.
        part: a public class of ours whose objects are what is chosen among. (default: the leaves)

    Raises:
        TypeError: `where` is no selector, path, predicate or tuple of these.
        ValueError: the selector returned something that is not a place; or the predicate is true of a
            node by its path alone, and not of all parts below it.
        KeyError: there is no such path, or the predicate chose nothing.
    """
    _, treedef = flatten(tree)
    if isinstance(where, tuple):
        each = [find_places(tree, w, part)[0] for w in where]
        return [place for found in each for place in found], True
    if isinstance(where, str):
        return [paths.lookup(tree, where)[0]], False
    if paths.is_node(where) or not callable(where):
        what = f"a {type(where).__name__}" if callable(where) else repr(where)
        if paths.is_node(where) and (isinstance(tree, str) or is_plain_function(tree)):
            raise TypeError(
                f"where= is {found(where)}; the tree comes first: write (tree, {written(tree, 'where')})"
            )
        raise TypeError(
            f"where= is {what}; write a selector such as lambda m: m.layers[0], a path such as "
            "'.layers[0]', or a predicate of (path, node)"
        )
    if _is_predicate(where):
        found_by_predicate = _search(tree, where, part)
        if not found_by_predicate:
            raise KeyError(
                "the predicate chose no place of the tree: it was false of every (path, node); paths are "
                f"{_some_paths(treedef)}"
            )
        return found_by_predicate, True
    marked = _mark(tree)
    try:
        chosen = where(marked)
    except Exception as error:
        raise ValueError(
            f"the selector failed ({type(error).__name__}: {error}); it sees the tree with a marker in place "
            "of each leaf, so it can follow attributes, keys and indices only; to choose by what a leaf is, "
            "write a predicate of two arguments, (path, node)"
        ) from error
    known = _places_by_identity(marked)
    if id(chosen) in known:
        return [known[id(chosen)]], False
    if isinstance(chosen, (tuple, list)) and chosen and all(id(c) in known for c in chosen):
        return [known[id(c)] for c in chosen], True
    by_what = "torch.is_tensor(node)" if part is None else "path.endswith('.bias')"
    predicate = f"; a predicate takes two arguments: lambda path, node: {by_what}"
    raise ValueError(
        f"the selector returned {chosen!r}, which is not a place of the tree: an attribute that is not a "
        f"child, or a value that was computed; places are {_some_paths(treedef)}"
        f"{predicate if isinstance(chosen, bool) else ''}"
    )


def _some_paths(treedef: optree.PyTreeSpec) -> str:
    """The first paths of the leaves of a tree, for an error."""
    known = structure_of(treedef).paths
    return f"{', '.join(path or 'the root' for path in known[:8]) or 'none'}{', …' if len(known) > 8 else ''}"


def selected_leaves(
    tree: Any, leaves: Sequence[Any], treedef: optree.PyTreeSpec, where: Where | tuple[Where, ...], /
) -> set[int]:
    """The indices of the leaves at or below the chosen places of a tree, given flattened too."""
    numbered = treedef.unflatten(range(len(leaves)))
    places, _ = find_places(tree, where)
    chosen: set[int] = set()
    for entries in places:
        chosen.update(
            optree.tree_leaves(paths.descend(numbered, entries), none_is_leaf=True, namespace=NAMESPACE)
        )
    return chosen


def _is_predicate(where: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(where).parameters.values()
    except (ValueError, TypeError):  # of C, such as operator.attrgetter
        return False
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) not in (1, 2):
        raise TypeError(
            f"where= takes {len(required)} arguments; a selector takes the tree, a predicate the "
            "path and the node"
        )
    return len(required) == 2


def _mark(tree: Any) -> Any:
    # An empty tuple is one object for the whole of Python: it counts as a leaf while marking,
    # so that each gets a marker of its own.
    leaves, treedef = flatten(tree, lambda x: type(x) is tuple and not x)
    where = structure_of(treedef).paths
    return treedef.unflatten([_Marker(i, where[i]) for i in range(len(leaves))])


def _places_by_identity(marked: Any) -> dict[int, Entries]:
    known: dict[int, Entries] = {}

    def visit(node: Any, entries: Entries) -> None:
        known[id(node)] = entries
        for step, child in paths.children(node):
            visit(child, (*entries, step.entry))

    visit(marked, ())
    return known


def _search(tree: Any, predicate: Callable[[str, Any], Any], part: type | None) -> list[Entries]:
    chosen: list[Entries] = []

    def visit(node: Any, path: str, entries: Entries) -> None:
        if predicate(path, node):
            _refuse_chosen_by_path(predicate, path, node, part)
            chosen.append(entries)
            return
        for step, child in paths.children(node):
            visit(child, path + step.text, (*entries, step.entry))

    visit(tree, "", ())
    return chosen


def _refuse_chosen_by_path(
    predicate: Callable[[str, Any], Any], path: str, node: Any, part: type | None
) -> None:
    """Refuse a node that was chosen by its path, where the predicate is true of some parts below alone.

    ``not path.startswith(".head")`` is true of the root, whose path is empty, so all would be chosen. A
    node of which the predicate is true under the path of such a part too was chosen for what it is.
    """
    if not paths.is_node(node) or type(node) is part:
        return
    parts, treedef = flatten(node, lambda x: type(x) is part)
    answers = {
        path + below: _answer(predicate, path + below, x)
        for below, x in zip(structure_of(treedef).paths, parts, strict=True)
        if part is None or type(x) is part
    }
    outside = next((place for place, answer in answers.items() if answer is False), None)
    if outside is None or True not in answers.values() or _answer(predicate, outside, node) is not False:
        return
    here = f"{path}, {found(node)}," if path else "the whole tree, whose path is '',"
    what = "torch.Tensor" if part is None else f"fluxlike.{part.__name__}"
    frozen = "; to freeze all but one place, fluxlike.thaw(fluxlike.freeze(state), place)" if part else ""
    raise ValueError(
        f"the predicate is true of {here} and would choose all of it, but it is false of {outside}; write "
        f"isinstance(node, {what}) and …, so that it is true of no container{frozen}"
    )


def _answer(predicate: Callable[[str, Any], Any], path: str, x: Any) -> bool | None:
    """What a predicate says of a place that it need not know how to answer for; None where it fails."""
    try:
        return bool(predicate(path, x))
    except Exception:
        return None
