"""What a function returned, taken apart: tensors that have a derivative, and everything else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optree
import torch
from torch import Tensor

from fluxlike.transforms.engine import over_mesh
from fluxlike.trees.functor import NAMESPACE
from fluxlike.trees.leaves import can_train
from fluxlike.trees.structure import flatten, leaves_like, structure_of
from fluxlike.trees.values import stands_for_float

__all__ = ["Output", "leaves_or_none"]


class Output:
    """A tree that a function returned.

    Args:
        name: the transform, for errors.
        value: the tree.
        may_be_constant: whether there may be no tensor in it that has a derivative. (default: False)

    Attributes:
        places: the indices of the leaves that have a derivative: floating and complex tensors.
        tensors: these leaves.
    """

    def __init__(self, name: str, value: Any, *, may_be_constant: bool = False) -> None:
        self._leaves, self._treedef = flatten(value)
        self.places = [i for i, x in enumerate(self._leaves) if can_train(x)]
        self.tensors: list[Tensor] = [self._leaves[i] for i in self.places]
        if not self.places and not may_be_constant:
            _report_no_tensor(name, value, self._leaves)

    def closed(self, close: Callable[[Tensor], Tensor]) -> Any:
        """The tree with `close` of its tensors, once for a tied one."""
        known: dict[int, Tensor] = {}
        leaves = list(self._leaves)
        for i, x in enumerate(leaves):
            if isinstance(x, Tensor):
                if id(x) not in known:
                    known[id(x)] = close(x)
                leaves[i] = known[id(x)]
        return self._treedef.unflatten(leaves)

    def tree(self, found: list[Any]) -> Any:
        """A tree of the same structure with one object for each of `tensors`, and None elsewhere."""
        leaves: list[Any] = [None] * len(self._leaves)
        for i, x in zip(self.places, found, strict=True):
            leaves[i] = x
        return self._treedef.unflatten(leaves)

    def cotangents(self, tree: Any) -> list[Tensor | None]:
        """What a tree given by the user holds for each of `tensors`.

        Raises:
            ValueError: its structure is not that of the output, or a shape, dtype or device differs.
            TypeError: it holds something else in the place of a tensor.
        """
        leaves = leaves_or_none(self._treedef, tree, name="the cotangent", like="the output")
        return [self._cotangent(i, leaves[i], y) for i, y in zip(self.places, self.tensors, strict=True)]

    def _cotangent(self, i: int, c: Any, y: Tensor) -> Tensor | None:
        if c is None:
            return None
        where = f"the cotangent{structure_of(self._treedef).paths[i]}"
        if isinstance(c, (int, float)) and y.ndim == 0:
            return over_mesh.laid_out_like(torch.full((), c, dtype=y.dtype, device=y.device), y)
        if isinstance(c, Tensor) and stands_for_float(c):
            c = c.to(y)
        if not isinstance(c, Tensor):
            raise TypeError(
                f"{where} is {c!r}, and the output is a tensor of shape {tuple(y.shape)} there; give a "
                "tensor of that shape, or None where the output is not used"
            )
        if c.shape != y.shape:
            raise ValueError(
                f"{where} has the shape {tuple(c.shape)}, the output {tuple(y.shape)}; nothing is broadcast: "
                "write c.expand(y.shape) if that is what you mean"
            )
        if c.dtype != y.dtype or c.device != y.device:
            raise ValueError(
                f"{where} is of {c.dtype} on {c.device}, the output of {y.dtype} on {y.device}; write c.to(y)"
            )
        return over_mesh.laid_out_like(c, y)


def leaves_or_none(treedef: optree.PyTreeSpec, tree: Any, /, *, name: str, like: str) -> list[Any]:
    """The leaves of a tree of a known structure, in which None may stand for any part.

    Raises:
        ValueError: the structures differ; it names the first place where they do.
    """

    def read(treedef_: Any, node: Any) -> list[Any] | None:
        if node is None:
            return [None] * treedef_.num_leaves
        if treedef_.is_leaf():
            return [node]
        if type(node) is not treedef_.type:
            return None
        children, _, entries, _ = optree.tree_flatten_one_level(node, none_is_leaf=True, namespace=NAMESPACE)
        if list(entries) != list(treedef_.entries()):
            return None
        found = [read(part, child) for part, child in zip(treedef_.children(), children, strict=True)]
        return None if None in found else [leaf for part in found for leaf in part or ()]

    leaves, found = flatten(tree)
    if found == treedef:
        return leaves
    if tree is None or not any(x is None for x in leaves):
        return (
            [None] * treedef.num_leaves if tree is None else leaves_like(treedef, tree, name=name, like=like)
        )
    filled = read(treedef, tree)
    return filled if filled is not None else leaves_like(treedef, tree, name=name, like=like)


def _report_no_tensor(name: str, value: Any, leaves: list[Any]) -> None:
    kinds = sorted({str(x.dtype) if isinstance(x, Tensor) else type(x).__name__ for x in leaves})
    hint = ": did you call .item() or float()? The output must stay a tensor" if "float" in kinds else ""
    if value is None:
        hint = "; did you forget to return the output?"
    raise ValueError(
        f"{name} needs a function that returns a floating or complex tensor, or a tree of them, and the "
        f"function returned {'nothing' if not kinds else 'only ' + ', '.join(kinds)}{hint}"
    )
