"""Whole batches from a layout with the batch last to ours with the batch first, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.placement.layout import permute
from fluxlike.placement.layout_rules import (
    LayoutRule,
    Place,
    applies,
    checked_rules,
    require_convention,
    rules_for,
)
from fluxlike.trees.found import found
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["batch_first", "batch_last"]


def batch_first(batch: Any, /, convention: str = "WHCN", *, rules: Sequence[LayoutRule] = ()) -> Any:
    """A batch from Julia with the batch as the first axis, as our layers take it.

    Every array of two axes or more is permuted, as a view, by the first rule about it: see `layout_rule`
    for their order. Where there is no rule, the convention says what the axes mean. Arrays of one axis,
    such as labels, and everything that is no array are kept.

    Args:
        batch: a tree of tensors and numpy arrays.
        convention: ``"WHCN"``, that of Flux and PyCallChainRules: all axes are reversed, so that
            (W, H, C, N) is (N, C, H, W); or ``"HWCN"``, that of PyTorchTraining: (H, W, C, N) is
            (N, C, H, W), and of any other array the last axis comes to the front. (default: ``"WHCN"``)
        rules: rules for this call, before all others.

    Returns:
        A tree of the same structure, kinds, dtypes, devices and ties. All arrays are views.

    Raises:
        ValueError: an unknown convention, a rule of this call whose key is nowhere in the batch, or one
            array at two places whose rules differ.
        TypeError: an array of two axes or more that is neither a tensor nor of numpy, or a sparse tensor of
            rows or columns; a convention that is no string.

    Example:
        >>> import numpy as np, fluxlike as fl
        >>> batch = {"image": np.zeros((32, 28, 3, 8), order="F"), "label": np.zeros(8)}
        >>> here = fl.batch_first(batch)
        >>> here["image"].shape, here["image"].flags.c_contiguous, here["label"].shape
        ((8, 3, 28, 32), True, (8,))
    """
    _require_convention("batch_first", batch, convention)
    given = checked_rules(rules)

    def move(place: Place, x: Any) -> Any:
        rule = _first(rules_for(convention, given, x.ndim), place, x)
        return permute(x, rule.src, rule.dst)

    return _move("batch_first", move, batch, given)


def batch_last(batch: Any, /, convention: str = "WHCN", *, rules: Sequence[LayoutRule] = ()) -> Any:
    """A batch of ours with the batch as the last axis, as Julia takes it: the inverse of `batch_first`.

    Args:
        batch: a tree of tensors and numpy arrays.
        convention: as in `batch_first`.
        rules: as in `batch_first`. The conditions of a rule are about the array as it is in Julia.

    Returns:
        A tree of the same structure, kinds, dtypes, devices and ties. All arrays are views.

    Raises:
        ValueError: as `batch_first`; and where different arrays would have led here by different rules.
        TypeError: as `batch_first`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.batch_last(torch.zeros(8, 3, 28, 32)).shape
        torch.Size([32, 28, 3, 8])
        >>> fl.batch_last(torch.zeros(8, 3, 28, 32), "HWCN").shape
        torch.Size([28, 32, 3, 8])
    """
    _require_convention("batch_last", batch, convention)
    given = checked_rules(rules)

    def move(place: Place, x: Any) -> Any:
        every = rules_for(convention, given, x.ndim)
        origins = [(rule, permute(x, rule.dst, rule.src)) for rule in every]
        return _origin(place, x, [(r, origin) for r, origin in origins if _first(every, place, origin) is r])

    return _move("batch_last", move, batch, given)


def _require_convention(name: str, batch: Any, convention: Any) -> None:
    """Refuse what is no convention, also where no array asks for one.

    Raises:
        ValueError: an unknown convention.
        TypeError: it is no string.
    """
    if not isinstance(convention, str):
        hint = f"; write {name}(batch, {batch!r})" if isinstance(batch, str) else ""
        raise TypeError(
            f"{name} takes a batch, then a convention, found {found(convention)} as the convention{hint}"
        )
    require_convention(convention)


def _origin(place: Place, x: Any, found: list[tuple[LayoutRule, Any]]) -> Any:
    """The one array that led here."""
    rule, origin = found[0]
    for other, another in found[1:]:
        if not _alike(origin, another):
            raise ValueError(
                f"batch_last: {place.path or 'the array'} of shape {tuple(x.shape)} may come from "
                f"{tuple(origin.shape)} by {rule} or from {tuple(another.shape)} by {other}; say which "
                "by a rule with its key, rules=[fluxlike.layout_rule(…, key=…)]"
            )
    return origin


def _first(rules: list[LayoutRule], place: Place, x: Any) -> LayoutRule:
    return next(rule for rule in rules if applies(rule, place, x))


def _alike(x: Any, y: Any) -> bool:
    """Whether two views of one array have the same axes."""
    return bool(x.shape == y.shape) and (_is_sparse(x) or _strides(x) == _strides(y))


def _strides(x: Any) -> tuple[int, ...]:
    return tuple(x.stride() if isinstance(x, Tensor) else x.strides)


def _is_sparse(x: Any) -> bool:
    return isinstance(x, Tensor) and x.layout is not torch.strided


def _move(name: str, move: Callable[[Place, Any], Any], batch: Any, rules: tuple[LayoutRule, ...]) -> Any:
    leaves, treedef = flatten(batch)
    where = structure_of(treedef).paths
    keys = [accessor[-1].entry if accessor else None for accessor in treedef.accessors()]
    places = [Place(path, key) for path, key in zip(where, keys, strict=True)]
    _require_keys(name, rules, places)
    moved: dict[int, tuple[str, Any]] = {}  # id of an array → its first place, its view
    result = list(leaves)
    for i, (x, place) in enumerate(zip(leaves, places, strict=True)):
        if not _has_axes(name, place, x):
            continue
        view = move(place, x)
        first, image = moved.setdefault(id(x), (place.path, view))
        if not _alike(view, image):
            raise ValueError(
                f"{name}: {first} and {place.path} are one array, and their rules give it the shapes "
                f"{tuple(image.shape)} and {tuple(view.shape)}; give both places one rule, or two arrays"
            )
        result[i] = image
    return treedef.unflatten(result)


def _has_axes(name: str, place: Place, x: Any) -> bool:
    """Whether a leaf has axes to move; what has some and can't be moved is refused."""
    ndim = getattr(x, "ndim", None)
    if not isinstance(ndim, int) or ndim < 2:
        return False
    if not isinstance(x, (Tensor, np.ndarray)):
        kind = f"{type(x).__module__}.{type(x).__qualname__}"
        raise TypeError(
            f"{name}: {place.path or 'the batch'} is a {kind} of {ndim} axes; it takes tensors and numpy "
            "arrays, so convert it first, such as by numpy.asarray(x)"
        )
    if isinstance(x, Tensor) and x.layout not in (torch.strided, torch.sparse_coo):
        raise TypeError(
            f"{name}: {place.path or 'the batch'} is a tensor of the layout {x.layout}, whose axes can't be "
            "moved as a view; write x.to_dense() or x.to_sparse() first"
        )
    return True


def _require_keys(name: str, rules: tuple[LayoutRule, ...], places: list[Place]) -> None:
    """Refuse rules of the call whose key is nowhere in the batch, as a misspelt one is."""
    for rule in rules:
        if rule.key is not None and not any(place.is_called(rule.key) for place in places):
            known = ", ".join(place.path or "its root" for place in places) or "nothing"
            raise ValueError(f"{name}: the batch has no {rule.key!r}, which {rule} is about; it has {known}")
