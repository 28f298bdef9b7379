"""Data sets as rows of observations: how many there are, one of them, some of them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from numbers import Real
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from fluxlike.data.order import order_key, random_order
from fluxlike.scope.key import Key
from fluxlike.trees.paths import is_node
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["getobs", "is_indexed", "is_tree_of_arrays", "num_observations", "splitobs", "takeobs"]


def is_tree_of_arrays(data: Any, /) -> bool:
    """Whether data is read as a tree of arrays: an array, or a tuple, dict or other tree but a list.

    A list is one of samples, as it is for torch.
    """
    if isinstance(data, (Tensor, np.ndarray)):
        return True
    return not isinstance(data, (Dataset, list)) and is_node(data)


def is_indexed(data: Any, /) -> bool:
    """Whether data has a length and items, and is no tree of arrays."""
    if isinstance(data, (IterableDataset, str, bytes)) or is_tree_of_arrays(data):
        return False
    return hasattr(type(data), "__len__") and hasattr(type(data), "__getitem__")


def num_observations(data: Any, /) -> int:
    """How many observations a data set holds.

    Args:
        data: a tree of tensors and numpy arrays; or a list, a ``torch.utils.data.Dataset``, or anything
            else with a length and items.

    Returns:
        The length of the first axes of the arrays; or the length.

    Raises:
        TypeError: a leaf of the tree that is no array, or something that is no data set.
        ValueError: the lengths differ, an array without axes, no array at all, or a list of arrays, which
            may be meant as either.

    Example:
        >>> import torch
        >>> from fluxlike.data.observations import num_observations
        >>> num_observations({"x": torch.zeros(3, 8), "y": torch.zeros(3)})
        3
    """
    if is_tree_of_arrays(data):
        return _rows(data)
    if not is_indexed(data):
        raise TypeError(
            f"the data is a {type(data).__name__}; data is a tree of tensors or numpy arrays whose first "
            "axis counts the observations, or something with a length and items"
        )
    if isinstance(data, list):
        _require_samples(data)
    try:
        return len(data)
    except (TypeError, NotImplementedError) as error:
        raise TypeError(f"the {type(data).__name__} does not say how many observations it has") from error


def _rows(data: Any) -> int:
    leaves, treedef = flatten(data)
    where = structure_of(treedef).paths
    lengths: dict[int, str] = {}
    for path, x in zip(where, leaves, strict=True):
        place = path or "the data"
        if not isinstance(x, (Tensor, np.ndarray)):
            raise TypeError(
                f"{place} is a {type(x).__name__}; data is a tree of tensors or numpy arrays whose first "
                "axis counts the observations, or a list of samples, or something with a length and items"
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


def _require_samples(data: list[Any]) -> None:
    """Refuse a list that looks like a tree of arrays."""
    if data and all(isinstance(x, (Tensor, np.ndarray)) and x.ndim > 0 for x in data):
        raise ValueError(
            "the data is a list of arrays, and a list is one of samples: for arrays whose rows are the "
            "observations write tuple(data), for samples of one shape torch.stack(data), and for samples "
            "of different shapes a torch.utils.data.Dataset and how to join them, collate="
        )


def getobs(data: Any, i: int, /) -> Any:
    """One observation: row i of every array, or ``data[i]``."""
    if not is_tree_of_arrays(data):
        return data[i]
    leaves, treedef = flatten(data)
    return treedef.unflatten([x[i] for x in leaves])


def takeobs(data: Any, rows: slice | Tensor, /) -> Any:
    """Some observations as a data set of the same kind: of arrays views for a slice, else copies."""
    if is_tree_of_arrays(data):
        leaves, treedef = flatten(data)
        return treedef.unflatten([_take(x, rows) for x in leaves])
    indices = range(len(data))[rows] if isinstance(rows, slice) else rows.tolist()
    return [data[i] for i in indices] if isinstance(data, list) else Subset(data, indices)


def _take(x: Any, rows: slice | Tensor) -> Any:
    if isinstance(rows, slice):
        return x[rows]
    return x[rows.to(x.device)] if isinstance(x, Tensor) else x[rows.numpy()]


def splitobs(
    data: Any, /, at: float | Sequence[float], *, shuffle: bool = False, key: Key | None = None
) -> tuple[Any, ...]:
    """Split a data set, for example into training and validation.

    Args:
        data: a tree of tensors and numpy arrays; or a list, a ``torch.utils.data.Dataset``, or anything
            else with a length and items.
        at: the share of the first part; or the shares of all parts but the last.
        shuffle: whether to draw the parts at random; else they are consecutive. (default: False)
        key: what the parts are drawn from. (default: the key in scope; where there is none, torch's
            generator)

    Returns:
        A tuple of trees like `data`: views if consecutive, copies if shuffled; of lists, or of torch's
        ``Subset``. Sizes are rounded, and add up.

    Raises:
        TypeError: a `key` that is no Key, or what is no data set.
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
    order = random_order(n, key) if shuffle else None
    parts = [slice(*cut) for cut in pairwise(cuts)]
    return tuple(takeobs(data, part if order is None else order[part]) for part in parts)
