"""Data sets in another order, and folds for cross-validation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from fluxlike.data.checks import whole_number
from fluxlike.data.observations import num_observations, takeobs
from fluxlike.data.order import order_key, random_order
from fluxlike.scope.key import Key

__all__ = ["kfolds", "shuffleobs"]


def shuffleobs(data: Any, /, *, key: Key | None = None) -> Any:
    """A data set in random order.

    Args:
        data: a tree of tensors and numpy arrays; or a list, a ``torch.utils.data.Dataset``, or anything
            else with a length and items.
        key: what the order is drawn from. (default: the key in scope; where there is none, torch's
            generator)

    Returns:
        A tree like `data`, of copies; a list; or torch's ``Subset``.

    Raises:
        TypeError: a `key` that is no Key, or what is no data set.
        ValueError: several keys, or arrays of different lengths.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.data.folds import shuffleobs
        >>> x, y = shuffleobs((torch.arange(5), torch.arange(5) ** 2), key=fl.Key(0))
        >>> bool((x**2 == y).all()), sorted(x.tolist())
        (True, [0, 1, 2, 3, 4])
    """
    key = order_key("shuffleobs", key, True)
    return takeobs(data, random_order(num_observations(data), key))


def kfolds(
    data: Any, /, k: int, *, shuffle: bool = False, key: Key | None = None
) -> Iterator[tuple[Any, Any]]:
    """The k pairs of training and validation data of a cross-validation.

    Args:
        data: a tree of tensors and numpy arrays; or a list, a ``torch.utils.data.Dataset``, or anything
            else with a length and items.
        k: how many folds, from 2 to the number of observations.
        shuffle: whether to draw the folds at random; else they are consecutive. (default: False)
        key: what the folds are drawn from. (default: the key in scope; where there is none, torch's
            generator)

    Returns:
        An iterator of ``(training, validation)``, made when asked for. Every observation is in one of the
        validation sets; their sizes differ by at most one, the larger ones first.

    Raises:
        TypeError: a `key` that is no Key, a `k` that is no whole number, or what is no data set.
        ValueError: `k` out of range, a `key` without `shuffle`, or arrays of different lengths.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.data.folds import kfolds
        >>> [(t.tolist(), v.tolist()) for t, v in kfolds(torch.arange(5), 3)]
        [([2, 3, 4], [0, 1]), ([0, 1, 4], [2, 3]), ([0, 1, 2, 3], [4])]
    """
    key = order_key("kfolds", key, shuffle)
    n = num_observations(data)
    folds = whole_number(k)
    if folds is None:
        raise TypeError(f"kfolds takes a whole number of folds, found k={k!r}")
    if not 2 <= folds <= n:
        raise ValueError(f"kfolds(k={k}): {n} observations make from 2 to {n} folds")
    order = random_order(n, key) if shuffle else torch.arange(n, device="cpu")
    return _folds(data, order, folds)


def _folds(data: Any, order: Tensor, k: int) -> Iterator[tuple[Any, Any]]:
    small, larger = divmod(len(order), k)
    sizes = [small + (i < larger) for i in range(k)]
    for start, stop in pairwise(accumulate(sizes, initial=0)):
        rest = torch.cat((order[:start], order[stop:]))
        yield takeobs(data, rest), takeobs(data, order[start:stop])
