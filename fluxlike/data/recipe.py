"""How one batch is made: its samples are read, joined and transformed, under its own random draws."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import count, islice, repeat
from typing import Any

from torch import Tensor

from fluxlike.data.collation import SampleError
from fluxlike.data.collation import collate as stacked
from fluxlike.data.epoch import Epoch
from fluxlike.data.failures import Failure
from fluxlike.data.reading import read
from fluxlike.data.share import WHOLE, Share
from fluxlike.data.sources import Arrays, Rows, Samples, Stream, shuffled

__all__ = ["Made", "Mark", "Plan", "Recipe"]


class Mark(Enum):
    """What a stream gives where there is no batch."""

    SKIPPED = "skipped"
    ENDED = "ended"


@dataclass(frozen=True)
class Made:
    """A batch of a stream."""

    batch: Any


@dataclass(frozen=True)
class Plan:
    """The numbers and the rows of the batches of an epoch.

    Args:
        order: of the observations; None for that of the data.
        size: of a batch.
        stop: how many observations are read.
        start: the first batch.
    """

    order: Tensor | None
    size: int
    stop: int
    start: int

    def __len__(self) -> int:
        return -(-self.stop // self.size) - self.start

    def __iter__(self) -> Iterator[tuple[int, Rows]]:
        for first in range(self.start * self.size, self.stop, self.size):
            last = min(first + self.size, self.stop)
            rows = range(first, last) if self.order is None else self.order[first:last].tolist()
            yield first // self.size, rows


@dataclass(frozen=True)
class Recipe:
    """How the batches of one epoch are made.

    Args:
        epoch: which they are a function of.
        size: of a batch.
        partial: whether a smaller batch at the end is kept.
        collate: from samples to a batch.
        transform: from a batch to a batch, or None.
        buffer: of how many samples a stream is shuffled; 0 for not at all.
        share: which rows of a batch of samples are read.
    """

    epoch: Epoch
    size: int
    partial: bool
    collate: Callable[[Sequence[Any]], Any]
    transform: Callable[[Any], Any] | None
    buffer: int = 0
    share: Share = WHOLE

    def batch(self, source: Arrays | Samples, number: int, rows: Rows) -> Any:
        """One batch of numbered observations.

        Raises:
            Failure: a part of it raised something.
        """
        if isinstance(source, Arrays):
            with self.epoch.seeded(number):
                return self._finish(source.take(rows))
        samples = read(source, rows, self.share, self.epoch, number)
        rows = rows[self.share.of(len(rows))]
        if self.transform is None and self.collate is stacked:  # which draws nothing
            return self._join(samples, rows)
        with self.epoch.seeded(number):
            return self._finish(self._join(samples, rows))

    def stream(self, stream: Stream, start: int, shard: int = 0, shards: int = 1) -> Generator[Made | Mark]:
        """The batches of one shard of a stream, ``SKIPPED`` for those before `start`; at last ``ENDED``.

        Batch i of a shard is counted as the one of number ``shard + i·shards``.

        Raises:
            Failure: a part of a batch raised something.
        """
        leap = start if shards == 1 and not self.buffer and stream.can_skip else 0
        read = leap * self.size
        samples = self._open(stream, read, shard, shards)
        yield from repeat(Mark.SKIPPED, leap)
        for i in count(leap):
            number = shard + i * shards
            with self.epoch.seeded(number):
                try:
                    found = list(islice(samples, self.size))
                except Exception as error:
                    raise Failure(f"the stream, after {read} samples,") from error
                made = self._of_samples(found, read, number < start)
            read += len(found)
            yield made
            if made is Mark.ENDED:
                return

    def _open(self, stream: Stream, skip: int, shard: int, shards: int) -> Iterator[Any]:
        try:
            with self.epoch.opening():
                samples = stream.shard(shard, shards).samples(skip)
        except Exception as error:
            raise Failure("opening the stream") from error
        if not self.buffer:
            return samples
        return shuffled(samples, self.buffer, self.epoch.seed())

    def _of_samples(self, found: list[Any], read: int, skip: bool) -> Made | Mark:
        if not found or (len(found) < self.size and not self.partial):
            return Mark.ENDED
        if skip:
            return Mark.SKIPPED
        return Made(self._finish(self._join(found, range(read, read + len(found)))))

    def _join(self, samples: list[Any], rows: Rows) -> Any:
        try:
            return self.collate(samples)
        except SampleError as error:
            raise Failure(f"collate (sample {error.sample} is observation {rows[error.sample]})") from error
        except Exception as error:
            raise Failure("collate") from error

    def _finish(self, batch: Any) -> Any:
        if self.transform is None:
            return batch
        try:
            return self.transform(batch)
        except Exception as error:
            raise Failure("transform") from error
