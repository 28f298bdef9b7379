"""Batches from arrays in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fluxlike.data.observations import num_observations
from fluxlike.data.order import order_key, random_order
from fluxlike.scope.key import Key
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["DataLoader"]


class DataLoader:
    """Iterate over a data set in batches, by slicing its arrays instead of collating samples.

    Args:
        data: a tree of tensors and numpy arrays; the first axis counts the observations.
        batch_size: observations a batch. (default: 1)
        shuffle: whether each epoch has a new order; else batches are views, in order. (default: False)
        partial: whether a last, smaller batch is kept. (default: True)
        key: what the orders are drawn from: epoch i, from 0, has that of ``key.fold_in(i)``. (default: the
            key in scope as an epoch starts; where there is none, torch's generator)

    Iterating gives trees like `data` with tensors (numpy arrays become tensors), ``len`` the number
    of batches.

    Raises:
        TypeError: a leaf of `data` that is no array, or a `key` that is no Key.
        ValueError: arrays of different lengths, a `batch_size` below 1, or a `key` without `shuffle`.

    Example:
        >>> import torch, fluxlike as fl
        >>> loader = fl.DataLoader((torch.arange(5), torch.arange(5) ** 2), batch_size=2)
        >>> [y.tolist() for x, y in loader]
        [[0, 1], [4, 9], [16]]
    """

    def __init__(
        self,
        data: Any,
        batch_size: int = 1,
        *,
        shuffle: bool = False,
        partial: bool = True,
        key: Key | None = None,
    ) -> None:
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size={batch_size!r}: write a whole number of at least 1")
        if isinstance(data, torch.utils.data.Dataset):
            raise TypeError(
                f"DataLoader takes arrays in memory, found a {type(data).__name__}; give its arrays, such as "
                "dataset.tensors of a TensorDataset, or use torch's own DataLoader"
            )
        self._observations = num_observations(data)
        leaves, self._treedef = flatten(data)
        where = structure_of(self._treedef).paths
        self._arrays = [_tensor(path, x) for path, x in zip(where, leaves, strict=True)]
        self.batch_size, self.shuffle, self.partial = batch_size, shuffle, partial
        self._key = order_key("DataLoader", key, shuffle)
        self._epochs = 0

    def __len__(self) -> int:
        whole, rest = divmod(self._observations, self.batch_size)
        return whole + (1 if rest and self.partial else 0)

    def __iter__(self) -> Iterator[Any]:
        n, size = self._observations, self.batch_size
        stop = n if self.partial else n - n % size
        unflatten = self._treedef.unflatten
        if not self.shuffle:
            for start in range(0, stop, size):
                yield unflatten([x[start : start + size] for x in self._arrays])
            return
        order = random_order(n, None if self._key is None else self._key.fold_in(self._epochs))
        self._epochs += 1
        orders = {x.device: order.to(x.device) for x in self._arrays}
        by_array: list[tuple[Tensor, Tensor]] = [(x, orders[x.device]) for x in self._arrays]
        for start in range(0, stop, size):
            end = min(start + size, stop)
            yield unflatten([x.index_select(0, rows[start:end]) for x, rows in by_array])

    def __repr__(self) -> str:
        return (
            f"DataLoader({self._observations} observations, batch_size={self.batch_size}, "
            f"shuffle={self.shuffle}, partial={self.partial})"
        )


def _tensor(path: str, x: Any) -> Tensor:
    """An array as a tensor, of the same memory where torch can share it."""
    if isinstance(x, Tensor):
        return x
    if not x.flags.writeable or any(stride < 0 for stride in x.strides):
        x = x.copy()
    try:
        return torch.from_numpy(x)
    except TypeError:
        raise TypeError(
            f"{path or 'the data'} is a numpy array of {x.dtype}, which torch does not have; convert it to "
            "numbers first, such as labels by onehotbatch"
        ) from None
