"""Which leaves are parameters, and splitting a tree by them or by any other choice of places."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from fluxlike.trees.leaves import can_train
from fluxlike.trees.places import Where, selected_leaves
from fluxlike.trees.structure import flatten, leaves_like, structure_of

__all__ = ["Parameters", "combine", "parameters", "partition", "trainables"]


class Parameters(NamedTuple):
    """The parameters among the leaves of one tree, each tied one once.

    Attributes:
        first: for each parameter, the index of the first leaf that holds it.
        number: from the ``id`` of each parameter tensor to its number.
    """

    first: list[int]
    number: dict[int, int]


def parameters(leaves: Sequence[Any], trainable: Sequence[bool], /) -> Parameters:
    """Find the parameters among the leaves of a tree.

    A tied tensor is a parameter if any of its places is trainable; it is counted where it
    stands first, trainable there or not.

    Args:
        leaves: all leaves of a tree.
        trainable: for each leaf, whether its place is trainable.
    """
    wanted = {id(x) for x, trains in zip(leaves, trainable, strict=True) if trains and can_train(x)}
    first: list[int] = []
    index: dict[int, int] = {}
    for i, x in enumerate(leaves):
        key = id(x)
        if key in wanted and key not in index:
            index[key] = len(first)
            first.append(i)
    return Parameters(first, index)


def trainables(tree: Any, /, *, paths: bool = False) -> list[Any]:
    """All parameters of a tree, each tied one once, in the order of the tree.

    Args:
        tree: any tree.
        paths: whether to pair each parameter with the path of its first place. (default: False)

    Returns:
        A list of tensors, or of pairs (path, tensor).

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(3, 2), fl.BatchNorm(2))
        >>> [path for path, _ in fl.trainables(model, paths=True)]
        ['.layers[0].weight', '.layers[0].bias', '.layers[1].weight', '.layers[1].bias']
    """
    leaves, treedef = flatten(tree)
    structure = structure_of(treedef)
    first = parameters(leaves, structure.trainable).first
    if paths:
        return [(structure.paths[i], leaves[i]) for i in first]
    return [leaves[i] for i in first]


def partition(tree: Any, where: Where | tuple[Where, ...], /) -> tuple[Any, Any]:
    """Split a tree in two of the same structure: the leaves at some places, and the others.

    To train a part, give ``wrt=`` to `gradient`. In a loss over ``combine(selected, others)`` that is
    differentiated by `selected`, a buffer in `others` does not move; `withupdates` fetches it.

    Args:
        tree: any tree.
        where: places as in `at`; of a tied leaf, all places go with the first one selected.

    Returns:
        ``(selected, others)``: each has None where the other has the leaf.

    Example:
        >>> import fluxlike as fl
        >>> head, rest = fl.partition({"body": 1.0, "head": 2.0}, "['head']")
        >>> head, rest
        ({'body': None, 'head': 2.0}, {'body': 1.0, 'head': None})
        >>> fl.combine(head, rest)
        {'body': 1.0, 'head': 2.0}
    """
    leaves, treedef = flatten(tree)
    chosen = selected_leaves(tree, leaves, treedef, where)
    tied = {id(leaves[i]) for i in chosen if isinstance(leaves[i], Tensor)}
    inside = [i in chosen or id(x) in tied for i, x in enumerate(leaves)]
    return (
        treedef.unflatten([x if s else None for x, s in zip(leaves, inside, strict=True)]),
        treedef.unflatten([None if s else x for x, s in zip(leaves, inside, strict=True)]),
    )


def combine(tree: Any, /, *others: Any) -> Any:
    """Undo `partition`: at each place, the leaf of the one tree that has one there.

    Args:
        tree: a tree.
        others: trees of the same structure.

    Returns:
        A tree of the same structure.

    Raises:
        ValueError: the structures differ, or two trees hold a leaf at the same place.

    Example:
        >>> import fluxlike as fl
        >>> fl.combine([1, None, None], [None, 2, None])
        [1, 2, None]
    """
    leaves, treedef = flatten(tree)
    result = list(leaves)
    for n, other in enumerate(others):
        found = leaves_like(treedef, other, name=f"tree {n + 2} of combine", like="the first")
        for i, x in enumerate(found):
            if x is not None and result[i] is not None:
                raise ValueError(
                    f"two trees of combine hold a leaf at {structure_of(treedef).paths[i]}; all but "
                    "one must hold None there"
                )
            result[i] = x if result[i] is None else result[i]
    return treedef.unflatten(result)
