"""What a DataLoader reads: arrays in memory, samples by their number, streams of samples."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from fluxlike.data.failures import Failure
from fluxlike.data.observations import is_indexed, is_tree_of_arrays, num_observations
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Arrays", "Rows", "Samples", "Source", "Stream", "shuffled", "source_of"]

#: The observations of a batch: consecutive, or any.
Rows = range | list[int]


def source_of(data: Any, /) -> Arrays | Samples | Stream:
    """How data is read.

    Raises:
        TypeError, ValueError: it is nothing that can be read in batches.
    """
    if is_tree_of_arrays(data):
        return Arrays.of(data)
    if is_indexed(data):
        return Samples(data, num_observations(data))
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        raise TypeError(
            f"the {type(data).__name__} has no length; give the data set a __len__, or make it a "
            "torch.utils.data.IterableDataset"
        )
    if isinstance(data, Iterator):
        raise TypeError(
            f"the data is a {type(data).__name__}, an iterator, which can be read only once, and every epoch "
            "reads the data anew; give an object whose __iter__ starts from the beginning"
        )
    if isinstance(data, Iterable) and not isinstance(data, (str, bytes)):
        return Stream(data)
    return Samples(data, num_observations(data))  # which says what is wrong


@dataclass(frozen=True)
class Arrays:
    """A tree of arrays, whose first axis counts the observations."""

    tensors: list[Tensor]
    treedef: Any
    observations: int

    @classmethod
    def of(cls, data: Any) -> Arrays:
        observations = num_observations(data)
        leaves, treedef = flatten(data)
        where = structure_of(treedef).paths
        tensors = [_tensor(path, x) for path, x in zip(where, leaves, strict=True)]
        return cls(tensors, treedef, observations)

    def take(self, rows: Rows) -> Any:
        """A batch: views of consecutive rows, else copies."""
        if isinstance(rows, range):
            return self.treedef.unflatten([x[rows.start : rows.stop] for x in self.tensors])
        index = torch.tensor(rows, dtype=torch.int64, device="cpu")
        return self.treedef.unflatten([x.index_select(0, index.to(x.device)) for x in self.tensors])

    def batches(self, order: Tensor | None, size: int, start: int, stop: int) -> Generator[Any]:
        """All batches of the rows from `start` to `stop`, as `take` gives them."""
        unflatten = self.treedef.unflatten
        if order is None:
            for first in range(start, stop, size):
                yield self.take(range(first, min(first + size, stop)))
            return
        orders = {x.device: order.to(x.device) for x in self.tensors}
        by_array = [(x, orders[x.device]) for x in self.tensors]
        for first in range(start, stop, size):
            last = min(first + size, stop)
            yield unflatten([x.index_select(0, rows[first:last]) for x, rows in by_array])


@dataclass(frozen=True)
class Samples:
    """Anything with a length and items."""

    data: Any
    observations: int

    def take(self, rows: Rows) -> list[Any]:
        """The samples of some numbers."""
        several = getattr(self.data, "__getitems__", None)  # of torch's protocol
        if several is not None:
            try:
                return list(several(list(rows)))
            except Exception as error:
                raise Failure(f"__getitems__({list(rows)})") from error
        data, samples = self.data, []
        i = 0
        try:
            for i in rows:
                samples.append(data[i])
        except Exception as error:
            raise Failure(f"observation {i}") from error
        return samples


@dataclass(frozen=True)
class Stream:
    """An iterable of samples."""

    data: Any

    def shard(self, index: int, number: int) -> Stream:
        """The part of worker `index` of `number`."""
        return self if number == 1 else Stream(self.data.shard(num_shards=number, index=index))

    def samples(self, skip: int = 0) -> Iterator[Any]:
        """All samples after the first few, which only a stream that `can_skip` leaves out."""
        return iter(self.data.skip(skip) if skip else self.data)

    @property
    def can_skip(self) -> bool:
        return callable(getattr(self.data, "skip", None))

    @property
    def can_shard(self) -> bool:
        return callable(getattr(self.data, "shard", None))

    @property
    def observations(self) -> int | None:
        """How many samples there are, if the stream says so."""
        try:
            return len(self.data)
        except (TypeError, NotImplementedError):
            return None


Source = Arrays | Samples | Stream


def shuffled(samples: Iterator[Any], size: int, seed: int) -> Iterator[Any]:
    """Samples in an order drawn from a buffer of `size` of them."""
    generator = random.Random(seed)
    buffer: list[Any] = []
    for sample in samples:
        if len(buffer) < size:
            buffer.append(sample)
            continue
        place = generator.randrange(size)
        buffer[place], sample = sample, buffer[place]
        yield sample
    generator.shuffle(buffer)
    yield from buffer


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
