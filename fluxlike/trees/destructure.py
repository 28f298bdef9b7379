"""A model as one vector of its parameters, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.trainables import parameters
from fluxlike.trees.values import value_of

__all__ = ["destructure"]


def destructure(model: Any, /) -> tuple[Tensor, Callable[[Tensor], Any]]:
    """All parameters of a model in one vector, and the function that makes a model of such a vector.

    Both ways are differentiable, and work inside every transform: ``vmap(rebuild)`` of a matrix of
    vectors is an ensemble.

    A gradient by the vector keeps the mode around it, which is test mode, since no functor is in the vector:
    write it in ``with mode("train"):``, and have what layers assign reported by
    ``withupdates(loss, rebuild(flat))`` inside.

    Args:
        model: any tree.

    Returns:
        ``(flat, rebuild)``. `flat` has the shape (number of parameters,) and holds them in the order
        of `trainables`, each row by row and each tied one once. Its dtype is the one that all dtypes
        of parameters promote to, so it is complex where one parameter is. ``rebuild(flat)`` has the
        structure, the ties and the dtypes of the model, and its very buffers and constants; a real
        parameter takes the real part of a complex vector. It remembers no parameters.

    Raises:
        ValueError: the parameters are on several devices, or have no common dtype; from `rebuild`:
            the vector has another length, dtype or device.
        TypeError: from `rebuild`: it got no tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> flat, rebuild = fl.destructure({"bias": torch.zeros(1), "w": torch.ones(2, 2)})
        >>> flat
        tensor([0., 1., 1., 1., 1.])
        >>> rebuild(2 * flat)["w"]
        tensor([[2., 2.],
                [2., 2.]])
    """
    leaves, treedef = flatten(model)
    structure = structure_of(treedef)
    first, number = parameters(leaves, structure.trainable)
    values = [value_of(leaves[i]) for i in first]
    paths = [structure.paths[i] for i in first]
    device, dtype = _common_device(values, paths), _common_dtype(values, paths)
    shapes, dtypes = [x.shape for x in values], [x.dtype for x in values]
    sizes = [x.numel() for x in values]
    total = sum(sizes)
    # For each leaf, which parameter stands there; the leaves that are none.
    which = [number.get(id(x)) for x in leaves]
    rest = [x if n is None else None for x, n in zip(leaves, which, strict=True)]

    def rebuild(flat: Tensor, /) -> Any:
        """The model with the parameters of a vector as `destructure` gives it."""
        _check(flat, total, dtype, device)
        pieces = [
            _cast(piece.reshape(shape), kind)
            for piece, shape, kind in zip(flat.split(sizes), shapes, dtypes, strict=True)
        ]
        return treedef.unflatten([x if n is None else pieces[n] for x, n in zip(rest, which, strict=True)])

    if not values:
        return torch.empty(0, dtype=dtype, device=device), rebuild
    return torch.cat([x.reshape(-1).to(dtype) for x in values]), rebuild


def _common_device(values: list[Tensor], paths: list[str]) -> torch.device:
    if not values:
        return torch.device("cpu")
    for x, path in zip(values, paths, strict=True):
        if x.device != values[0].device:
            raise ValueError(
                f"destructure: {paths[0]} is on {values[0].device} and {path} on {x.device}, and one vector "
                "has one device; write fluxlike.to_device(model, device) first"
            )
    return values[0].device


def _common_dtype(values: list[Tensor], paths: list[str]) -> torch.dtype:
    if not values:
        return torch.get_default_dtype()
    common = values[0].dtype
    for x, path in zip(values, paths, strict=True):
        if x.dtype != common:
            try:
                common = torch.promote_types(common, x.dtype)
            except RuntimeError as error:  # the 8-bit dtypes promote to nothing
                raise ValueError(
                    f"destructure: {path} is of {x.dtype}, those before it of {common}, and no dtype holds "
                    "both; cast the model first"
                ) from error
    return common


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.real if x.is_complex() and not dtype.is_complex else x).to(dtype)


def _check(flat: Any, total: int, dtype: torch.dtype, device: torch.device) -> None:
    if not isinstance(flat, Tensor):
        raise TypeError(
            f"rebuild takes the vector that destructure gave, or one like it, found {type(flat).__name__}"
        )
    if flat.shape != (total,):
        hint = (
            "; for several models at once, write fluxlike.vmap(rebuild)"
            if flat.ndim == 2 and flat.shape[1] == total
            else ""
        )
        raise ValueError(
            f"rebuild takes a vector of {total} entries, one for each number of the model's parameters, "
            f"found the shape {tuple(flat.shape)}{hint}"
        )
    if flat.dtype != dtype:
        raise ValueError(
            f"rebuild takes a vector of {dtype}, found {flat.dtype}; write flat.to({dtype}), or cast the "
            "model before destructure"
        )
    if flat.device != device:
        raise ValueError(
            f"rebuild takes a vector on {device}, found one on {flat.device}; move the model before "
            "destructure, by fluxlike.to_device"
        )
