"""Which axis of each tensor `vmap` maps over: an axis, None, or a prefix of a tree that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike.trees import paths
from fluxlike.trees.functor import spec_of
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.values import stands_for_float

__all__ = ["Axis", "Inputs", "spread", "tensor_in"]

Axis = int | None


class Inputs:
    """The arguments of one call.

    Attributes:
        tensors: the tensors that are mapped, each once.
        axes: the axis of each.
        size: the number of members.
    """

    def __init__(self, args: tuple[Any, ...], in_dims: Any) -> None:
        self.tensors: list[Tensor] = []
        self.axes: list[int] = []
        self._slots: list[dict[int, int]] = []  # for each argument, from leaf to mapped tensor
        self._said: list[str] = []  # the place of each mapped tensor
        self._args, self._in_dims = args, in_dims
        self._flat = [flatten(arg) for arg in args]
        known: dict[tuple[int, int], int] = {}  # tensor and axis → mapped tensor, tied to itself
        for n, (leaves, axes) in enumerate(zip(self._flat, _axes(in_dims, args), strict=True)):
            self._slots.append({})
            seen: dict[int, tuple[int, Axis]] = {}
            for i, (leaf, axis) in enumerate(zip(leaves[0], axes, strict=True)):
                x = tensor_in(leaf)
                if x is None:
                    continue
                if stands_for_float(x):
                    axis = None
                axis = axis if axis is None else self._checked(x, axis, n, i)
                self._check_tie(seen, x, axis, n, i)
                if axis is None:
                    continue
                if (id(x), axis) not in known:
                    known[id(x), axis] = len(self.tensors)
                    self.tensors.append(x)
                    self.axes.append(axis)
                    self._said.append(self._say(n, i))
                self._slots[n][i] = known[id(x), axis]
        self.size = self._common_size()

    def put_shared(self, stand_in: Callable[[Tensor], Tensor]) -> None:
        """Put others in the place of the tensors that are not mapped."""
        for (leaves, _), slots in zip(self._flat, self._slots, strict=True):
            for i, leaf in enumerate(leaves):
                x = None if i in slots else tensor_in(leaf)
                if x is not None:
                    leaves[i] = Assigned(stand_in(x)) if isinstance(leaf, Assigned) else stand_in(x)

    def with_(self, tensors: Sequence[Tensor]) -> Iterator[Any]:
        """The arguments with other tensors in the place of those that are mapped."""
        for (leaves, treedef), slots in zip(self._flat, self._slots, strict=True):
            result = list(leaves)
            for i, k in slots.items():
                result[i] = Assigned(tensors[k]) if isinstance(leaves[i], Assigned) else tensors[k]
            yield treedef.unflatten(result)

    def note(self, error: Exception) -> None:
        """Note on an error of the function that models were mapped too, where `in_dims` was left out."""
        written = self._of_one_model()
        if written and isinstance(error, (IndexError, RuntimeError, TypeError, ValueError)):
            error.add_note(
                "vmap: in_dims=0 maps the model among the arguments too; where it is one that all members "
                f"share, and no stack of several, write in_dims={written}"
            )

    def _checked(self, x: Tensor, axis: int, n: int, i: int) -> int:
        if not -x.ndim <= axis < x.ndim:
            what = "a 0-d tensor" if x.ndim == 0 else f"of shape {tuple(x.shape)}"
            raise ValueError(
                f"vmap: {self._say(n, i)} is {what}, which has no axis {axis}; give None in in_dims for what "
                "all members share, or stack the trees with fluxlike.stack"
            )
        if x.layout is not torch.strided:
            raise ValueError(
                f"vmap: {self._say(n, i)} is of {x.layout}, which can't be mapped; give None for it in "
                "in_dims, or make it dense"
            )
        return axis % x.ndim

    def _check_tie(self, seen: dict[int, tuple[int, Axis]], x: Tensor, axis: Axis, n: int, i: int) -> None:
        first, other = seen.setdefault(id(x), (i, axis))
        if other != axis:
            raise ValueError(
                f"vmap: {self._say(n, first)} and {self._say(n, i)} are tied, but in_dims gives one the axis "
                f"{other} and the other {axis}; give both the same"
            )

    def _common_size(self) -> int:
        if not self.tensors:
            raise ValueError(
                "vmap found no tensor to map over: in_dims gives None for every tensor in the arguments, or "
                "there is none; keyword arguments are shared by all members"
            )
        sizes = [x.shape[axis] for x, axis in zip(self.tensors, self.axes, strict=True)]
        for size, axis, said in zip(sizes, self.axes, self._said, strict=True):
            if size != sizes[0]:
                raise ValueError(
                    f"vmap: {self._said[0]} has {sizes[0]} members on axis {self.axes[0]}, and {said} has "
                    f"{size} on axis {axis}; {self._advice(sizes)}"
                )
        return sizes[0]

    def _advice(self, sizes: list[int]) -> str:
        """What to write where the sizes differ; a list of models can't be meant where its own differ."""
        for n, arg in enumerate(self._args):
            if len({sizes[k] for k in self._slots[n].values()}) > 1 and _are_members(arg):
                return (
                    f"argument {n} is a {type(arg).__name__} of {len(arg)} trees of one structure, so stack "
                    "them first: fluxlike.stack(models)"
                )
        written = self._of_one_model()
        return "give None in in_dims for what all members share" + (f": in_dims={written}" if written else "")

    def _of_one_model(self) -> str:
        """The in_dims to write where a model is one, and no stack; empty where they were given."""
        models = [callable(arg) and spec_of(type(arg)) is not None for arg in self._args]
        if self._in_dims != 0 or not any(models) or all(models):
            return ""
        return f"({', '.join('None' if model else '0' for model in models)})"

    def _say(self, n: int, i: int) -> str:
        return f"{structure_of(self._flat[n][1]).paths[i] or 'the whole'} of argument {n}"


def spread(prefix: Any, tree: Any, /, *, option: str, of: str) -> list[Axis]:
    """The axis of every leaf of a tree.

    Args:
        prefix: an axis for all leaves; or a node of the same kind with a prefix for each child. In the
            place of a constant, the constant itself will do, as `fmap` leaves it.
        tree: the tree.
        option: what the prefix was given as, for errors.
        of: what the tree is, for errors.

    Raises:
        ValueError: the prefix is none of the tree. It names the place.
    """
    found: list[Axis] = []

    def walk(prefix: Any, node: Any, path: str) -> None:
        if _is_axis(prefix):
            found.extend([prefix] * (flatten(node)[1].num_leaves if paths.is_node(node) else 1))
        elif not paths.is_node(node):
            if prefix is not node or tensor_in(node) is not None:
                _refuse(prefix, path)
            found.append(None)
        elif type(prefix) is not type(node):
            _refuse(prefix, path, node)
        else:
            given, wanted = (dict(_children(x)) for x in (prefix, node))
            for step in [*wanted, *given]:
                if step not in given or step not in wanted:
                    there, not_there = (of, option) if step in wanted else (option, of)
                    raise ValueError(
                        f"{option} is no prefix of {of}: {there} has {path}{step}, {not_there} has not; a "
                        "prefix has an axis or None for every child, or one for all"
                    )
            for step, child in wanted.items():
                walk(given[step], child, path + step)

    def _refuse(prefix: Any, path: str, node: Any = None) -> NoReturn:
        wanted = "an axis (an int) or None"
        if node is not None:
            wanted += f", or a {type(node).__qualname__} with one for each child"
        said = f"a {type(prefix).__qualname__}" if paths.is_node(prefix) else repr(prefix)
        raise ValueError(f"{option} is {said} at {path or 'the root'} of {of}; write {wanted}")

    walk(prefix, tree, "")
    return found


def tensor_in(leaf: Any, /) -> Tensor | None:
    """The tensor that a leaf is or carries."""
    if isinstance(leaf, Assigned):
        leaf = leaf.value
    return leaf if isinstance(leaf, Tensor) else None


def _axes(in_dims: Any, args: tuple[Any, ...]) -> list[list[Axis]]:
    """The axis of each leaf of each argument."""
    if _is_axis(in_dims):
        in_dims = (in_dims,) * len(args)
    if type(in_dims) not in (tuple, list):
        if isinstance(in_dims, Tensor) or callable(in_dims):
            raise ValueError(
                f"in_dims is a {type(in_dims).__name__}: arguments go to what vmap returns, so write "
                "vmap(f)(model, x)"
            )
        raise ValueError(
            f"in_dims={in_dims!r}: write an axis or None for all arguments, or a tuple with one, or a prefix "
            "of a tree, for each"
        )
    if len(in_dims) != len(args):
        raise ValueError(
            f"in_dims has {len(in_dims)} entries for {len(args)} arguments; write one for each, and none for "
            "keyword arguments, which are shared"
        )
    pairs = zip(in_dims, args, strict=True)
    return [spread(d, a, option=f"in_dims[{n}]", of=f"argument {n}") for n, (d, a) in enumerate(pairs)]


def _is_axis(x: object) -> bool:
    return x is None or type(x) is int


def _are_members(x: Any) -> bool:
    """Whether `x` is a list of trees that `stack` would take."""
    if type(x) not in (list, tuple) or len(x) < 2 or not all(map(paths.is_node, x)):
        return False
    kinds = []
    for leaves, treedef in map(flatten, x):
        kinds.append((treedef, [leaf.shape if isinstance(leaf, Tensor) else None for leaf in leaves]))
    return all(kind == kinds[0] for kind in kinds)


def _children(node: Any) -> list[tuple[str, Any]]:
    return [(step.text, child) for step, child in paths.children(node)]
