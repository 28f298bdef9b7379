"""Data sets as trees of arrays: the first axis of every array counts the observations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.data.order import order_key, random_order
from fluxlike.scope.key import Key
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["num_observations", "splitobs"]


def num_observations(data: Any, /) -> int:
    """How many observations a tree of arrays holds.

    Args:
        data: a tree of tensors and numpy arrays.

    Returns:
        The length of their first axes.

    Raises:
        TypeError: a leaf that is no array.
        ValueError: the lengths differ, an array without axes, or no array at all.
    """
    leaves, treedef = flatten(data)
    where = structure_of(treedef).paths
    lengths: dict[int, str] = {}
    for path, x in zip(where, leaves, strict=True):
        place = path or "the data"
        if not isinstance(x, (Tensor, np.ndarray)):
            raise TypeError(
                f"{place} is a {type(x).__name__}; data is a tree of tensors or numpy arrays whose first "
                "axis counts the observations"
            )
        if x.ndim == 0:
            raise ValueError(f"{place} is a single number, with no axis of observations")
        lengths.setdefault(x.shape[0], place)
    if not lengths:
        raise ValueError("the data holds no array")
    if len(lengths) > 1:
        (a, at_a), (b, at_b) = list(lengths.items())[:2]
        raise ValueError(f"{at_a} holds {a} observations, {at_b} holds {b}; they must be as many")
    return next(iter(lengths))


def splitobs(
    data: Any, /, at: float | Sequence[float], *, shuffle: bool = False, key: Key | None = None
) -> tuple[Any, ...]:
    """Split a data set, for example into training and validation.

    Args:
        data: a tree of tensors and numpy arrays.
        at: the share of the first part; or the shares of all parts but the last.
        shuffle: whether to draw the parts at random; else they are consecutive. (default: False)
        key: what the parts are drawn from. (default: the key in scope; where there is none, torch's
            generator)

    Returns:
        A tuple of trees like `data`: views if consecutive, copies if shuffled. Sizes are rounded,
        and add up.

    Raises:
        TypeError: a `key` that is no Key.
        ValueError: shares outside [0, 1], or that add up to more than 1; a `key` without `shuffle`.

    Example:
        >>> import torch, fluxlike as fl
        >>> train, test = fl.splitobs((torch.arange(10), torch.arange(10)), at=0.8)
        >>> test
        (tensor([8, 9]), tensor([8, 9]))
    """
    shares = (float(at),) if isinstance(at, Real) else tuple(map(float, at))  # type: ignore[arg-type]
    if any(not 0 <= s <= 1 for s in shares) or sum(shares) > 1 + 1e-9:
        raise ValueError(f"at={at!r}: write shares from 0 to 1 that add up to at most 1, such as 0.8")
    key = order_key("splitobs", key, shuffle)
    n = num_observations(data)
    cuts = [0, *(min(n, round(n * s)) for s in accumulate(shares)), n]
    leaves, treedef = flatten(data)
    order = random_order(n, key) if shuffle else None

    def part(x: Any, start: int, stop: int) -> Any:
        if order is None:
            return x[start:stop]
        rows = order[start:stop]
        return x[rows.to(x.device)] if isinstance(x, Tensor) else x[rows.numpy()]

    return tuple(treedef.unflatten([part(x, start, stop) for x in leaves]) for start, stop in pairwise(cuts))
