"""What a DataLoader reads: arrays in memory, samples by their number, streams of samples."""

from __future__ import annotations

import random
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Subset

from fluxlike.data.columns import Column, column
from fluxlike.data.failures import Failure
from fluxlike.data.observations import is_indexed, is_tree_of_arrays, num_observations
from fluxlike.data.share import Share
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Arrays", "Habits", "Rows", "Samples", "Source", "Stream", "shuffled", "source_of"]

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

    columns: list[Column]
    treedef: Any
    observations: int

    @classmethod
    def of(cls, data: Any) -> Arrays:
        observations = num_observations(data)
        leaves, treedef = flatten(data)
        where = structure_of(treedef).paths
        columns = [column(path, x) for path, x in zip(where, leaves, strict=True)]
        return cls(columns, treedef, observations)

    def take(self, rows: Rows) -> Any:
        """A batch: of consecutive rows views, where torch can share the memory; else copies."""
        if isinstance(rows, range):
            return self.treedef.unflatten([x[rows.start : rows.stop] for x in self.columns])
        index = torch.tensor(rows, dtype=torch.int64, device="cpu")
        return self.treedef.unflatten([x.index_select(0, index.to(x.device)) for x in self.columns])

    def batches(self, order: Tensor | None, size: int, start: int, stop: int, share: Share) -> Generator[Any]:
        """A share of all batches of the rows from `start` to `stop`, as `take` gives them."""
        unflatten = self.treedef.unflatten
        if order is None:
            for first in range(start, stop, size):
                rows = range(first, min(first + size, stop))
                yield self.take(rows[share.of(len(rows))])
            return
        orders = {x.device: order.to(x.device) for x in self.columns}
        by_array = [(x, orders[x.device]) for x in self.columns]
        for first in range(start, stop, size):
            part = share.of(min(size, stop - first))
            low, high = first + part.start, first + part.stop
            yield unflatten([x.index_select(0, rows[low:high]) for x, rows in by_array])


@dataclass
class Habits:
    """What a process has seen of how samples are read.

    Args:
        known: whether any was read.
        draws: whether one drew something at random.
    """

    known: bool = False
    draws: bool = False


@dataclass(frozen=True)
class Samples:
    """Anything with a length and items."""

    data: Any
    observations: int
    habits: Habits = field(default_factory=Habits, compare=False)

    @property
    def at_once(self) -> bool:
        """Whether several are read by one call."""
        return _has_getitems(self.data)

    def take(self, rows: Rows) -> list[Any]:
        """The samples of some numbers."""
        if self.at_once:
            try:
                return _listed(self.data.__getitems__(list(rows)), len(rows))
            except Exception as error:
                raise Failure(f"__getitems__ of {_some(rows)}") from error
        data, samples = self.data, []
        i = 0
        try:
            for i in rows:
                samples.append(data[i])
        except Exception as error:
            raise Failure(_one(data, i)) from error
        return samples


def _has_getitems(data: Any) -> bool:
    """Whether samples are read several at once, by torch's protocol."""
    while type(data) is Subset:  # whose own only hands on, and does not say which one failed
        data = data.dataset
    return hasattr(data, "__getitems__")


def _listed(found: Any, wanted: int) -> list[Any]:
    if isinstance(found, (Mapping, tuple, str, bytes)):
        raise TypeError(f"found a {type(found).__name__}; return a list of samples, one an observation")
    samples = list(found)
    if len(samples) != wanted:
        raise ValueError(f"found {len(samples)} samples for {wanted} observations; return one for each")
    return samples


def _one(data: Any, i: int) -> str:
    name, inner = f"observation {i}", data
    while type(inner) is Subset:
        i, inner = inner.indices[i], inner.dataset
    return name if inner is data else f"{name} (of the {type(inner).__name__} behind the Subset {i})"


def _some(rows: Rows) -> str:
    first = ", ".join(map(str, rows[:5]))
    return f"{len(rows)} observations ({first}{', …' * (len(rows) > 5)})"


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
