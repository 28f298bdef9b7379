"""Arithmetic on whole trees: models, gradients and states as vectors.

None and constants pass: where one of two trees has None the other's leaf stands, and constants are
those of the first tree. A tied tensor counts once. Of several `Assigned` the last wins.
"""

from __future__ import annotations

import numbers
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.rooms import room
from fluxlike.trees.fmap import fleaves, fmap
from fluxlike.trees.found import found, written
from fluxlike.trees.leaves import Assigned, can_train
from fluxlike.trees.structure import flatten, leaves_like, structure_of
from fluxlike.trees.values import is_tensor, value_of

__all__ = ["add", "allclose", "clone", "dot", "lerp", "norm", "scale", "sub", "zeros_like"]

_NUMBERS = (numbers.Number, torch.SymInt, torch.SymFloat)


def add(a: Any, b: Any, /) -> Any:
    """The sum of two trees, leaf by leaf.

    Args:
        a: a tree.
        b: a tree of the same structure.

    Returns:
        A tree of that structure.

    Raises:
        ValueError: the structures, or the shapes at one place, differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.add([torch.ones(2), None], [torch.ones(2), torch.ones(1)])
        [tensor([2., 2.]), tensor([1.])]
    """
    return _zip("add", lambda x, y: x + y, lambda y: y, a, b)


def sub(a: Any, b: Any, /) -> Any:
    """The difference ``a - b`` of two trees, leaf by leaf.

    Args:
        a: a tree.
        b: a tree of the same structure.

    Returns:
        A tree of that structure.

    Raises:
        ValueError: the structures, or the shapes at one place, differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.sub({"w": torch.ones(2)}, {"w": torch.ones(2)})
        {'w': tensor([0., 0.])}
    """
    return _zip("sub", lambda x, y: x - y, lambda y: -y, a, b)


def scale(tree: Any, factor: float | Tensor, /) -> Any:
    """A tree with every floating or complex tensor multiplied by a number.

    Args:
        tree: any tree.
        factor: a number or a 0-d tensor.

    Returns:
        A tree of the same structure; integer tensors are unchanged.

    Raises:
        TypeError: the factor is no number.
        ValueError: the factor has axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.scale({"w": torch.ones(2), "steps": torch.tensor(3)}, 0.5)
        {'w': tensor([0.5000, 0.5000]), 'steps': tensor(3)}
    """

    _require_number("scale", "factor", factor, (tree,))

    def multiply(x: Tensor) -> Tensor:
        if not can_train(x):
            return x
        narrow = isinstance(factor, Tensor) and not x.is_complex()  # a 0-d factor must not promote 0-d x
        return value_of(x) * (factor.to(x.dtype) if narrow else factor)  # type: ignore[union-attr]

    return fmap(multiply, tree)


def lerp(a: Any, b: Any, weight: float | Tensor, /) -> Any:
    """Linear interpolation ``a + weight · (b - a)`` between two trees.

    Args:
        a: a tree.
        b: a tree of the same structure.
        weight: a number or a 0-d tensor; 0 gives `a`, 1 gives `b`.

    Returns:
        A tree of that structure; integer tensors are those of `a`.

    Raises:
        TypeError: the weight is no number.
        ValueError: the structures, or the shapes at one place, differ; the weight has axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.lerp([torch.zeros(2)], [torch.ones(2)], 0.25)
        [tensor([0.2500, 0.2500])]
    """
    _require_number("lerp", "weight", weight, (a, b))
    return _zip("lerp", lambda x, y: torch.lerp(x, y, weight) if can_train(x) else x, lambda y: y, a, b)


def dot(a: Any, b: Any, /) -> Tensor:
    """The inner product of two trees as vectors, ``Σ conj(a)·b``.

    Args:
        a: a tree.
        b: a tree of the same structure.

    Returns:
        A 0-d tensor; a leaf that one of the trees lacks counts as zero.

    Raises:
        ValueError: the structures, or the shapes at one place, differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.dot([torch.ones(3), None], [torch.ones(3), torch.ones(2)])
        tensor(3.)
    """
    products: list[Tensor] = []

    def multiply(x: Tensor, y: Tensor) -> Tensor:
        if can_train(x):
            products.append((_at_least_float32(x).conj() * _at_least_float32(y)).sum())
        return x

    _zip("dot", multiply, lambda y: y, a, b)
    return torch.stack(_promoted(products)).sum() if products else torch.zeros(())


def norm(tree: Any, p: float = 2.0, /) -> Tensor:
    """The p-norm of all floating and complex tensors of a tree as one vector.

    Args:
        tree: any tree.
        p: the order, ``float("inf")`` for the largest magnitude. (default: 2)

    Returns:
        A 0-d real tensor, at least float32.

    Raises:
        TypeError: the order is no number.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.norm({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])})
        tensor(5.)
    """
    _require_number("norm", "p", p, (tree,))
    tensors = [value_of(x) for x in fleaves(tree) if can_train(x) and x.numel()]
    norms = [torch.linalg.vector_norm(_at_least_float32(x), p) for x in tensors]
    return torch.linalg.vector_norm(torch.stack(_promoted(norms)), p) if norms else torch.zeros(())


def zeros_like(tree: Any, /) -> Any:
    """A tree with zeros in place of every tensor.

    Args:
        tree: any tree.

    Returns:
        A tree of the same structure, ties and dtypes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.zeros_like({"w": torch.ones(2), "name": "w"})
        {'w': tensor([0., 0.]), 'name': 'w'}
    """
    return fmap(torch.zeros_like, tree)


def allclose(a: Any, b: Any, /, *, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether two trees have the same structure, close tensors and equal constants.

    Args:
        a: a tree.
        b: a tree.
        rtol: relative tolerance, as in ``torch.allclose``. (default: 1e-5)
        atol: absolute tolerance. (default: 1e-8)
        equal_nan: whether NaN equals NaN. (default: False)

    Returns:
        Whether every leaf agrees. Trees of different structure, shapes or dtypes do not.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.tree.allclose([torch.ones(2)], [torch.ones(2) + 1e-9])
        True
    """
    mine, treedef = flatten(a)
    try:
        theirs = leaves_like(treedef, b, name="b", like="a")
    except ValueError:
        return False

    def close(x: Any, y: Any) -> bool:
        if isinstance(x, Assigned) and isinstance(y, Assigned):
            x, y = x.value, y.value
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            same_kind = x.shape == y.shape and x.dtype == y.dtype and x.device == y.device
            if same_kind and x.is_meta:
                return x is y  # without data, only itself is known to be equal
            if same_kind and x.layout is not torch.strided:
                x, y = x.to_dense(), y.to_dense()
            return same_kind and torch.allclose(x, y, rtol=rtol, atol=atol, equal_nan=equal_nan)
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            return x.dtype == y.dtype and bool(np.array_equal(x, y))
        return x is y or (type(x) is type(y) and bool(x == y))

    return all(close(x, y) for x, y in zip(mine, theirs, strict=True))


def clone(tree: Any, /) -> Any:
    """A copy of a tree that shares no storage with it; ties stay ties.

    Args:
        tree: any tree.

    Returns:
        A tree of the same structure, every tensor copied once.

    Example:
        >>> import torch, fluxlike as fl
        >>> w = torch.ones(1)
        >>> copy = fl.tree.clone([w, w])
        >>> copy[0] is w, copy[0] is copy[1]
        (False, True)
    """
    return fmap(lambda x: value_of(x).clone(), tree)


def _require_number(name: str, what: str, x: Any, trees: tuple[Any, ...]) -> None:
    """Refuse a tree in the place of the number, which stands last.

    Raises:
        TypeError: `x` is no number.
        ValueError: `x` is a tensor with axes, which would be broadcast.
    """
    if _is_number(x):
        return
    number = next(filter(_is_number, trees), None)
    if number is not None:
        *others, last = map(found, (*trees, x))
        first = "tree" if len(trees) == 1 else "a, b"
        raise TypeError(
            f"{name} takes the {what} last, found {', '.join(others)} and {last}; write "
            f"{name}({first}, {written(number, what)})"
        )
    if isinstance(x, Tensor):
        raise ValueError(
            f"{name} takes a number or a 0-d tensor as its {what}, found the shape {tuple(x.shape)}; for a "
            "number of its own for each leaf, write fluxlike.fmap(f, tree, numbers)"
        )
    raise TypeError(f"{name} takes a number as its {what}, found {found(x)}")


def _is_number(x: Any) -> bool:
    return isinstance(x, _NUMBERS) or (isinstance(x, Tensor) and x.ndim == 0)


def _zip(
    name: str,
    both: Callable[[Tensor, Tensor], Tensor],
    only_second: Callable[[Tensor], Tensor],
    a: Any,
    b: Any,
) -> Any:
    mine, treedef = flatten(a)
    theirs = leaves_like(treedef, b, name=f"the second tree of {name}", like="the first")
    seen: dict[int, tuple[int, Any]] = {}  # a tied tensor → its first place and its result
    alone: dict[int, Tensor] = {}  # what only the second tree has, each tied tensor once
    result: list[Any] = []
    for i, (x, y) in enumerate(zip(mine, theirs, strict=True)):
        if is_tensor(x):
            if id(x) in seen:
                first, image = seen[id(x)]
                _check_tie(name, structure_of(treedef).paths, theirs, first, i)
            elif is_tensor(y):
                _check_shapes(name, structure_of(treedef).paths[i], x, y)
                image = both(value_of(x), value_of(y))
            else:
                image = x
            seen.setdefault(id(x), (i, image))
            result.append(image)
        elif is_tensor(y) and x is None:
            if id(y) not in alone:
                alone[id(y)] = only_second(value_of(y))
            result.append(alone[id(y)])
        elif isinstance(y, Assigned) and (x is None or isinstance(x, Assigned)):
            result.append(y)
        else:
            result.append(x)
    return treedef.unflatten(result)


def _check_shapes(name: str, path: str, x: Tensor, y: Tensor) -> None:
    if x.shape != y.shape:
        raise ValueError(
            f"{name}: at {path or 'the root'}, the first tree has the shape {tuple(x.shape)} and "
            f"the second {tuple(y.shape)}; nothing is broadcast between trees"
        )


def _check_tie(name: str, where: tuple[str, ...], theirs: list[Any], first: int, later: int) -> None:
    if theirs[later] is not None and theirs[later] is not theirs[first]:
        raise ValueError(
            f"{name}: {where[first]} and {where[later]} are tied in the first tree, but the second "
            f"holds different values there; add them up, and put None at {where[later]}"
        )


def _at_least_float32(x: Tensor) -> Tensor:
    if x.dtype == torch.complex32:
        return x.to(torch.complex64)
    return x.float() if x.is_floating_point() and x.element_size() < 4 else x


def _promoted(scalars: list[Tensor]) -> list[Tensor]:
    dtype = scalars[0].dtype if scalars else torch.float32
    for s in scalars:
        dtype = torch.promote_types(dtype, s.dtype)
    return [s.to(scalars[0].device, dtype) for s in scalars]


if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__)
