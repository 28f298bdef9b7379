"""Mapping over trees: `fmap` and its family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fluxlike.trees import paths
from fluxlike.trees.found import found, is_plain_function, written
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import IsLeaf, flatten, leaves_like, structure_of
from fluxlike.trees.values import is_tensor

__all__ = ["children", "fleaves", "fmap", "fmap_with_path"]

Visited = Literal["tensors", "all"]


def fmap(
    f: Callable[..., Any],
    tree: Any,
    /,
    *rest: Any,
    is_leaf: IsLeaf | None = None,
    leaves: Visited = "tensors",
) -> Any:
    """Map a function over the tensors of a tree, once for a tensor that is tied.

    Args:
        f: called as ``f(leaf)``, or ``f(leaf, *others)`` with the leaves of `rest` at the place.
        tree: any tree. Its constants, None and `Assigned` are left alone.
        rest: trees of the same structure. At the later places of a tied tensor they hold the same
            object as at the first, or None, as gradients do.
        is_leaf: says of a node that it is to be mapped whole, as a leaf. (default: no node is)
        leaves: ``"all"`` visits constants and None too. (default: ``"tensors"``)

    Returns:
        A tree of the same structure, with the same ties.

    Raises:
        TypeError: `f` is no function, or stands after the tree.
        ValueError: a tree of `rest` has another structure, or its own values at places that are
            tied in `tree`.

    Example:
        >>> import torch, fluxlike as fl
        >>> w = torch.ones(2)
        >>> doubled = fl.fmap(lambda x: 2 * x, {"encoder": w, "decoder": w, "name": "tied"})
        >>> doubled["encoder"], doubled["encoder"] is doubled["decoder"]
        (tensor([2., 2.]), True)
    """
    _require_function("fmap", f, tree)
    return _map(lambda _, *xs: f(*xs), tree, rest, is_leaf, leaves)


def fmap_with_path(
    f: Callable[..., Any],
    tree: Any,
    /,
    *rest: Any,
    is_leaf: IsLeaf | None = None,
    leaves: Visited = "tensors",
) -> Any:
    """`fmap` with the path of each leaf (for a tied tensor, of its first place) as first argument.

    Args:
        f: called as ``f(path, leaf, *others)``, the path as a string such as ``.layers[2].bias``.
        tree: any tree.
        rest: as in `fmap`.
        is_leaf: as in `fmap`.
        leaves: as in `fmap`.

    Returns:
        A tree of the same structure, with the same ties.

    Raises:
        TypeError, ValueError: as `fmap`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.fmap_with_path(lambda path, x: path, {"a": [torch.ones(2), torch.zeros(1)]})
        {'a': ["['a'][0]", "['a'][1]"]}
    """
    _require_function("fmap_with_path", f, tree)
    return _map(f, tree, rest, is_leaf, leaves)


def _require_function(name: str, f: Any, tree: Any) -> None:
    """Refuse the tree in the place of the function; a layer may be either.

    Raises:
        TypeError: it says what to write.
    """
    swapped = is_plain_function(tree) and paths.is_node(f)
    if swapped or not callable(f):
        hint = f"; write {name}({written(tree, 'f') if swapped else 'f'}, tree)"
        raise TypeError(f"{name} takes a function, then a tree, found {found(f)} and {found(tree)}{hint}")


def _map(
    f: Callable[..., Any], tree: Any, rest: tuple[Any, ...], is_leaf: IsLeaf | None, leaves: Visited
) -> Any:
    if leaves not in ("tensors", "all"):
        raise ValueError(f"leaves={leaves!r}: write 'tensors' or 'all'")
    visited, treedef = flatten(tree, is_leaf)
    where = structure_of(treedef).paths
    others = [
        leaves_like(treedef, r, name=f"tree {i + 2} of fmap", like="the first", is_leaf=is_leaf)
        for i, r in enumerate(rest)
    ]
    mapped: dict[int, tuple[int, Any]] = {}  # id of a shared leaf → its first place, its image
    result = []
    for i, x in enumerate(visited):
        shared = is_tensor(x) or (is_leaf is not None and is_leaf(x))
        if not shared and leaves == "tensors":
            result.append(x)
            continue
        if shared and id(x) in mapped:
            first, image = mapped[id(x)]
            _check_ties(others, where, first, i)
            result.append(image)
            continue
        try:
            image = f(where[i], x, *(o[i] for o in others))
        except (TypeError, AttributeError) as error:
            _note_gradients(error, where[i], [o[i] for o in others])
            raise
        if shared:
            mapped[id(x)] = i, image
        result.append(image)
    return treedef.unflatten(result)


def _note_gradients(error: Exception, path: str, others: list[Any]) -> None:
    """Note on the error of a function of several leaves what trees of gradients hold beside tensors."""
    for n, x in enumerate(others):
        if x is None or isinstance(x, Assigned):
            held = "None, as of a parameter that the loss does not reach"
            if x is not None:
                held = "an Assigned, the new value of a buffer"
            error.add_note(
                f"at {path or 'the root'}, tree {n + 2} of fmap holds {held}; for a step by gradients write "
                "state = fluxlike.setup(fluxlike.Descent(0.1), model), then model, state = "
                "fluxlike.update(state, model, grads)"
            )
            return


def _check_ties(others: list[list[Any]], where: tuple[str, ...], first: int, later: int) -> None:
    for n, o in enumerate(others):
        if o[later] is not o[first] and o[later] is not None:
            raise ValueError(
                f"{where[first]} and {where[later]} are tied in the first tree of fmap, but tree "
                f"{n + 2} holds different values there; add them up, and put None at {where[later]}"
            )


def fleaves(tree: Any, /, *, is_leaf: IsLeaf | None = None, leaves: Visited = "tensors") -> list[Any]:
    """The leaves that `fmap` would visit, in its order: each tied tensor once.

    Args:
        tree: any tree.
        is_leaf: as in `fmap`.
        leaves: as in `fmap`.

    Returns:
        A list of tensors, or of all leaves.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.fleaves({"a": torch.ones(1), "b": "text"})
        [tensor([1.])]
        >>> fl.fleaves({"a": torch.ones(1), "b": "text"}, leaves="all")
        [tensor([1.]), 'text']
    """
    visited: list[Any] = []
    fmap(visited.append, tree, is_leaf=is_leaf, leaves=leaves)
    return visited


def children(node: Any, /) -> dict[Any, Any]:
    """The children of one node, by attribute name, key or index; empty for a leaf.

    Args:
        node: any object.

    Returns:
        A dict in the order of the tree.

    Example:
        >>> import fluxlike as fl
        >>> list(fl.children(fl.Dense(3, 2)))
        ['weight', 'bias', 'activation']
        >>> fl.children(("a", "b"))
        {0: 'a', 1: 'b'}
    """
    flatten(node)  # registers subclasses on first sight, and reports what can't be a tree
    return {step.entry: child for step, child in paths.children(node)}
