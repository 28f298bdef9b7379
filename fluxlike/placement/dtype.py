"""Casting whole trees: `f16`, `bf16`, `f32`, `f64`."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from fluxlike.placement.numbers import HALVES
from fluxlike.scope.assigned import Assigned, derive
from fluxlike.trees.fmap import fmap
from fluxlike.trees.values import is_tensor, value_of

__all__ = ["bf16", "f16", "f32", "f64", "stays_float32"]

T = TypeVar("T")

C = TypeVar("C", bound=type)
_stay_float32: set[type] = set()
_COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}


def stays_float32(cls: C, /) -> C:
    """Say that the tensors of a class of layers stay float32 under `f16` and `bf16`.

    Args:
        cls: the class of a normalisation layer, or another that loses too much in 16 bits. Its
            forward must take 16-bit inputs.

    Returns:
        The class, so that it can be used as a decorator.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.f16(fl.Chain(fl.Dense(2, 3), fl.LayerNorm(3))).layers[1].weight.dtype
        torch.float32
    """
    _stay_float32.add(cls)
    return cls


def f16(tree: T, /) -> T:
    """A tree with its floating tensors in float16; those of normalisation layers in float32.

    Args:
        tree: any tree. Integer and complex tensors, and tensors that fit already, are kept.

    Returns:
        A tree of the same structure and ties.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.f16({"w": torch.ones(1), "n": torch.tensor(1)})
        {'w': tensor([1.], dtype=torch.float16), 'n': tensor(1)}
    """
    return _cast(tree, torch.float16)


def bf16(tree: T, /) -> T:
    """A tree with its floating tensors in bfloat16; those of normalisation layers in float32.

    Args:
        tree: any tree. Integer and complex tensors, and tensors that fit already, are kept.

    Returns:
        A tree of the same structure and ties.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.bf16([torch.ones(1)])
        [tensor([1.], dtype=torch.bfloat16)]
    """
    return _cast(tree, torch.bfloat16)


def f32(tree: T, /) -> T:
    """A tree with its floating tensors in float32, complex ones in complex64.

    Args:
        tree: any tree. Integer tensors, and tensors that fit already, are kept.

    Returns:
        A tree of the same structure and ties.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.f32([torch.ones(1, dtype=torch.float64)])
        [tensor([1.])]
    """
    return _cast(tree, torch.float32)


def f64(tree: T, /) -> T:
    """A tree with its floating tensors in float64, complex ones in complex128.

    Args:
        tree: any tree. Integer tensors, and tensors that fit already, are kept.

    Returns:
        A tree of the same structure and ties.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.f64([torch.ones(1)])
        [tensor([1.], dtype=torch.float64)]
    """
    return _cast(tree, torch.float64)


def _cast(tree: Any, dtype: torch.dtype) -> Any:
    narrow = dtype in HALVES
    done: dict[int, Tensor] = {}  # over the whole tree, so that ties across kept layers survive

    def cast(x: Any, to: torch.dtype) -> Any:
        if isinstance(x, Assigned):
            return Assigned(cast(x.value, to))
        if not is_tensor(x):
            return x
        if id(x) not in done:
            wanted = _COMPLEX.get(to, x.dtype) if x.is_complex() else to if x.is_floating_point() else x.dtype
            new = x if x.dtype == wanted else value_of(x).to(wanted)
            derive(new, x)
            done[id(x)] = new
        return done[id(x)]

    def visit(x: Any) -> Any:
        if narrow and _keeps(x):
            return fmap(lambda t: cast(t, torch.float32), x, leaves="all")
        return cast(x, dtype)

    return fmap(visit, tree, is_leaf=_keeps if narrow else None, leaves="all")


def _keeps(node: Any) -> bool:
    return any(base in _stay_float32 for base in type(node).__mro__)
