"""Whole batches from a layout with the batch last to ours with the batch first, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.placement.layout_rules import LayoutRule, Place, rules_for
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
        ValueError: an unknown convention, or one array at two places whose rules differ.

    Example:
        >>> import numpy as np, fluxlike as fl
        >>> batch = {"image": np.zeros((32, 28, 3, 8), order="F"), "label": np.zeros(8)}
        >>> here = fl.batch_first(batch)
        >>> here["image"].shape, here["image"].flags.c_contiguous, here["label"].shape
        ((8, 3, 28, 32), True, (8,))
    """

    def move(place: Place, x: Any) -> Any:
        return _first(rules_for(convention, rules, x.ndim), place, x).here(x)

    return _move("batch_first", move, batch)


def batch_last(batch: Any, /, convention: str = "WHCN", *, rules: Sequence[LayoutRule] = ()) -> Any:
    """A batch of ours with the batch as the last axis, as Julia takes it: the inverse of `batch_first`.

    Args:
        batch: a tree of tensors and numpy arrays.
        convention: as in `batch_first`.
        rules: as in `batch_first`. The conditions of a rule are about the array as it is in Julia.

    Returns:
        A tree of the same structure, kinds, dtypes, devices and ties. All arrays are views.

    Raises:
        ValueError: as `batch_first`; and where different arrays would have led here by different rules,
            not just one of them whole in memory.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.batch_last(torch.zeros(8, 3, 28, 32)).shape
        torch.Size([32, 28, 3, 8])
        >>> fl.batch_last(torch.zeros(8, 3, 28, 32), "HWCN").shape
        torch.Size([28, 32, 3, 8])
    """

    def move(place: Place, x: Any) -> Any:
        every = rules_for(convention, rules, x.ndim)
        origins = [(rule, rule.there(x)) for rule in every]
        return _origin(place, x, [(r, origin) for r, origin in origins if _first(every, place, origin) is r])

    return _move("batch_last", move, batch)


def _origin(place: Place, x: Any, found: list[tuple[LayoutRule, Any]]) -> Any:
    """The array that led here; of several, the one that is whole in memory, as arrays elsewhere are."""
    different = {(tuple(origin.shape), _strides(origin)): (rule, origin) for rule, origin in reversed(found)}
    if len(different) > 1:
        whole = [origin for _, origin in different.values() if _is_whole(origin)]
        if len(whole) == 1:
            return whole[0]
        (rule, origin), (other, another) = list(different.values())[-1:-3:-1]
        raise ValueError(
            f"batch_last: {place.path or 'the array'} of shape {tuple(x.shape)} may come from "
            f"{tuple(origin.shape)} by {rule} or from {tuple(another.shape)} by {other}; say which "
            "by a rule with its key, rules=[fluxlike.LayoutRule(…, key=…)]"
        )
    return found[0][1]


def _is_whole(x: Any) -> bool:
    if isinstance(x, np.ndarray):
        return bool(x.flags.forc)
    return x.is_contiguous() or x.permute(*reversed(range(x.ndim))).is_contiguous()


def _first(rules: list[LayoutRule], place: Place, x: Any) -> LayoutRule:
    return next(rule for rule in rules if rule.applies(place, x))


def _strides(x: Any) -> tuple[int, ...]:
    return tuple(x.stride() if isinstance(x, Tensor) else x.strides)


def _move(name: str, move: Callable[[Place, Any], Any], batch: Any) -> Any:
    leaves, treedef = flatten(batch)
    where = structure_of(treedef).paths
    moved: dict[int, tuple[str, Any]] = {}  # id of an array → its first place, its view
    result = list(leaves)
    for i, (x, accessor) in enumerate(zip(leaves, treedef.accessors(), strict=True)):
        if not isinstance(x, (Tensor, np.ndarray)) or x.ndim < 2:
            continue
        view = move(Place(where[i], accessor[-1].entry if accessor else None), x)
        first, image = moved.setdefault(id(x), (where[i], view))
        if view.shape != image.shape or _strides(view) != _strides(image):
            raise ValueError(
                f"{name}: {first} and {where[i]} are one array, and their rules give it the shapes "
                f"{tuple(image.shape)} and {tuple(view.shape)}; give both places one rule, or two arrays"
            )
        result[i] = image
    return treedef.unflatten(result)
