"""Many trees as one tree of stacked tensors, for `vmap`, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import optree
import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike.trees.constants import same_constant
from fluxlike.trees.functor import NAMESPACE, spec_of
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.nodes import PIN, riding
from fluxlike.trees.structure import Structure, flatten, require_same, structure_of
from fluxlike.trees.values import stands_for_float, value_of

__all__ = ["stack", "unstack"]


def stack(trees: Sequence[Any], /) -> Any:
    """Stack trees of one structure into one tree, whose tensors have a new first axis.

    It is what `vmap` maps over: an ensemble of models, a population of optimisers.

    Args:
        trees: a list or tuple of n trees. Tensors agree in shape, dtype and device, ties are the same
            in all, and every constant is: of equal value, a function the same function.

    Returns:
        A tree of their structure and ties. Tensors of shape ``s`` are of ``(n, *s)``; the scalars of a
        class (``functor(scalars=…)``, and the hyperparameters of every rule), which may differ, are
        float64 tensors of ``(n,)``; constants and None are as they were.

    Raises:
        TypeError: `trees` is no list or tuple.
        ValueError: there are no trees, or they differ where they may not. It names the place.

    Example:
        >>> import torch, fluxlike as fl
        >>> models = [fl.Dense(3, 2, fl.relu) for _ in range(5)]
        >>> ensemble = fl.stack(models)
        >>> ensemble.weight.shape, ensemble.activation is fl.relu
        (torch.Size([5, 2, 3]), True)
        >>> rates = (0.1, 0.01, 0.001, 0.1, 0.1)
        >>> states = fl.stack([fl.setup(fl.Adam(lr), m) for lr, m in zip(rates, models)])
        >>> states.weight.rule.lr
        tensor([0.1000, 0.0100, 0.0010, 0.1000, 0.1000], dtype=torch.float64)
    """
    if not isinstance(trees, (list, tuple)):
        raise TypeError(
            f"stack takes a list or tuple of trees, found a {type(trees).__name__}; write stack([a, b])"
        )
    if not trees:
        raise ValueError("stack got no trees; it takes at least one")
    flat = [flatten(tree) for tree in trees]
    treedef = flat[0][1]
    for k, (_, found) in enumerate(flat[1:], 1):
        require_same(found, treedef, name=f"tree {k}", like="tree 0")
    _require_same_attributes(trees)
    structure = structure_of(treedef)
    columns = list(zip(*(leaves for leaves, _ in flat), strict=True))
    _require_same_ties(columns, structure)
    stacked: dict[Any, Any] = {}
    result = []
    for i, column in enumerate(columns):
        key = _key(column, structure.scalar_names[i])
        if key not in stacked:
            stacked[key] = _stacked(column, structure, i)
        result.append(stacked[key])
    return treedef.unflatten(result)


def unstack(tree: Any, /) -> list[Any]:
    """Take a stacked tree apart; undoes `stack`.

    Args:
        tree: a tree whose tensors all have the same first axis.

    Returns:
        The list of trees along that axis, with the tree's structure and ties, and memory of their own.
        Scalars that `stack` made of floats are floats again, inside a transform 0-d tensors.

    Raises:
        ValueError: there is no tensor in the tree, or one that lacks the axis. It names the place.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.unstack({"w": torch.tensor([1.0, 2.0]), "name": "pair"})
        [{'w': tensor(1.), 'name': 'pair'}, {'w': tensor(2.), 'name': 'pair'}]
    """
    leaves, treedef = flatten(tree)
    structure = structure_of(treedef)
    n = _size(leaves, structure)
    apart: dict[int, list[Any]] = {}
    columns = []
    for i, x in enumerate(leaves):
        if id(x) not in apart:
            apart[id(x)] = _apart(x, n, structure.scalar[i])
        columns.append(apart[id(x)])
    return [treedef.unflatten([column[k] for column in columns]) for k in range(n)]


# Stacking


def _key(column: tuple[Any, ...], scalar: str | None) -> Any:
    """What the stacked leaf is shared by: the same tensors, or a scalar of one name and equal values.

    Rules that were equal must stay so, since parameters of equal rules move together.
    """
    if scalar is not None and all(type(x) is float for x in column):
        return scalar, *map(repr, column)
    return tuple(map(id, column))


def _stacked(column: tuple[Any, ...], structure: Structure, i: int) -> Any:
    """What stands for the leaves of all trees at one place."""
    first = column[0]
    if all(x is first for x in column) and not structure.scalar[i] and stands_for_float(first):
        return first
    if all(isinstance(x, Tensor) for x in column):
        return _stacked_tensors(column, structure, i)
    if all(isinstance(x, Assigned) for x in column):
        return Assigned(_stacked_tensors(tuple(x.value for x in column), structure, i))
    if structure.scalar[i] and all(type(x) is float for x in column):
        return torch.tensor(column, dtype=torch.float64)
    for k, x in enumerate(column[1:], 1):
        if not same_constant(first, x):
            _report_constant(structure, i, k, first, x)
    return first


def _stacked_tensors(column: tuple[Tensor, ...], structure: Structure, i: int) -> Tensor:
    first = column[0]
    for k, x in enumerate(column[1:], 1):
        for what in ("shape", "dtype", "device", "layout"):
            mine, theirs = getattr(first, what), getattr(x, what)
            if mine != theirs:
                found = (tuple(mine), tuple(theirs)) if what == "shape" else (mine, theirs)
                raise ValueError(
                    f"stack: at {_place(structure, i)}, tree 0 has a tensor of {what} {found[0]} and tree "
                    f"{k} of {found[1]}; stacked tensors are alike"
                )
    return torch.stack([value_of(x) for x in column])


def _report_constant(structure: Structure, i: int, k: int, first: Any, x: Any) -> NoReturn:
    if isinstance(first, Tensor) or isinstance(x, Tensor) or type(first) is not type(x):
        hint = "all trees hold the same kind of leaf at a place"
        if structure.scalar[i] and {type(first), type(x)} == {int, float}:
            hint = "write a float in all of them, such as 1.0, to stack them"
    elif isinstance(x, float):
        hint = (
            "floats are stacked where the class says so, functor(scalars=…), and make no difference "
            "elsewhere; or write 0-d tensors"
        )
    elif callable(x):
        hint = "all members run one function, so they hold the same one"
        if _say(first) == _say(x):
            hint = (
                "functions are compared by identity; define it once, outside of the loop that makes the trees"
            )
    else:
        hint = "constants are the same in all members; make it a tensor to let it differ"
    raise ValueError(
        f"stack: at {_place(structure, i)}, tree 0 has {_say(first)} and tree {k} has {_say(x)}; {hint}"
    )


def _require_same_ties(columns: list[tuple[Any, ...]], structure: Structure) -> None:
    """Raise where places are tied in one tree and not in another."""
    for k in range(len(columns[0]) if columns else 0):
        first: dict[int, int] = {}
        ties = [
            first.setdefault(id(c[k]), i) if isinstance(c[k], Tensor) else i for i, c in enumerate(columns)
        ]
        if k == 0:
            wanted = ties
        elif ties != wanted:
            i = next(i for i, (a, b) in enumerate(zip(ties, wanted, strict=True)) if a != b)
            tied, apart = (k, 0) if ties[i] != i else (0, k)
            one, other = sorted((ties[i] if tied == k else wanted[i], i))
            raise ValueError(
                f"stack: {_place(structure, one)} and {_place(structure, other)} are tied in tree {tied}, "
                f"but not in tree {apart}; tie or untie them in all, for example by at(tree, …).set(…)"
            )


_MISSING = object()


def _require_same_attributes(trees: Sequence[Any]) -> None:
    """Raise where attributes that are no children differ: the stacked tree has one value for each."""
    first = _functors(trees[0])
    for k, tree in enumerate(trees[1:], 1):
        for node, other in zip(first, _functors(tree), strict=True):
            mine, theirs = riding(node), riding(other)
            for name in {**mine, **theirs}:
                a, b = mine.get(name, _MISSING), theirs.get(name, _MISSING)
                if not _same_riding(a, b):
                    what, hint = (
                        ("the pinned mode", "pin all alike")
                        if name == PIN
                        else (f"{name} =", "it is no child, and so the same in all members, value for value")
                    )
                    raise ValueError(
                        f"stack: the {type(node).__qualname__} at {_path_of(trees[0], node)} has {what} "
                        f"{_say_riding(a)} in tree 0 and {_say_riding(b)} in tree {k}; {hint}"
                    )


def _same_riding(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a is b or (a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b))
    return same_constant(a, b)


def _say_riding(x: Any) -> str:
    if x is _MISSING:
        return "none"
    return _say(x) if isinstance(x, Tensor) else repr(x)


def _functors(tree: Any) -> list[Any]:
    """The objects of registered classes in a tree, in order."""
    found: list[Any] = []

    def visit(node: Any) -> bool:
        if not isinstance(node, type) and spec_of(type(node)) is not None:
            found.append(node)
        return False

    optree.tree_flatten(tree, visit, none_is_leaf=True, namespace=NAMESPACE)
    return found


def _path_of(tree: Any, node: Any) -> str:
    marked, treedef = flatten(tree, lambda x: x is node)
    return _place(structure_of(treedef), next(i for i, x in enumerate(marked) if x is node))


# Unstacking


def _size(leaves: list[Any], structure: Structure) -> int:
    """The size of the axis that all tensors have."""
    first: tuple[int, int] | None = None
    for i, leaf in enumerate(leaves):
        x = leaf.value if isinstance(leaf, Assigned) else leaf
        if not isinstance(x, Tensor):
            continue
        if x.ndim == 0:
            raise ValueError(
                f"unstack: {_place(structure, i)} is a 0-d tensor, without an axis to take apart; unstack "
                "takes what stack or vmap returned"
            )
        if first is None:
            first = i, x.shape[0]
        elif x.shape[0] != first[1]:
            raise ValueError(
                f"unstack: {_place(structure, first[0])} holds {first[1]} members and "
                f"{_place(structure, i)} {x.shape[0]}, by their first axes; they must be as many"
            )
    if first is None:
        raise ValueError("unstack: there is no tensor in the tree, so the number of members is not known")
    return first[1]


def _apart(leaf: Any, n: int, scalar: bool) -> list[Any]:
    """The members of one leaf."""
    if isinstance(leaf, Assigned):
        return [Assigned(x) for x in _apart(leaf.value, n, False)]
    if not isinstance(leaf, Tensor):
        return [leaf] * n
    x = value_of(leaf)
    was_float = scalar and x.ndim == 1 and x.dtype == torch.float64
    if was_float and tracing.concrete() and not x.requires_grad and not x.is_meta:
        return x.tolist()
    return [part.clone() for part in x.unbind(0)]


def _place(structure: Structure, i: int) -> str:
    return structure.paths[i] or "the root"


def _say(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)}"
    if callable(x) and hasattr(x, "__name__"):
        return f"the function {x.__name__}"
    return f"the {type(x).__name__} {x!r}" if isinstance(x, (float, int, str)) else repr(x)
