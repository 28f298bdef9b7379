"""Batches of arrays in memory, of data sets and of streams."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import torch

from fluxlike.advice import teaching
from fluxlike.data.checks import checked_settings, require_settings
from fluxlike.data.collation import collate as stack_samples
from fluxlike.data.cursor import Cursor
from fluxlike.data.epoch import Epoch, drawn_epoch, keyed_epoch
from fluxlike.data.failures import Death, Failure, report
from fluxlike.data.over_mesh import agreed_epoch, over_mesh
from fluxlike.data.prefetch import moved
from fluxlike.data.recipe import Made, Mark, Plan, Recipe
from fluxlike.data.share import WHOLE, share_of
from fluxlike.data.sources import Arrays, Stream, source_of
from fluxlike.data.workers import rows_by_workers, stream_by_workers
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import active

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["DataLoader"]

# Sets the keys of epochs apart from those that a training step folds from the same key.
_EPOCHS = int.from_bytes(b"epochs", "big")


@teaching
class DataLoader:
    """Iterate over a data set in batches.

    The data is one of

    - a tree of tensors and numpy arrays, such as ``(x, y)`` or a dict, whose first axis counts the
      observations. It is sliced, which takes no time for each sample; memory maps are read batch by batch.
    - a ``torch.utils.data.Dataset``, a list of samples, or anything else with a length and items. Samples
      are asked for one by one, or by the data set's ``__getitems__``, and joined by `collate`.
    - a stream: an ``IterableDataset``, or any other iterable of samples that can be iterated anew.

    A tuple, a dict or another tree is always one of arrays, a list always one of samples.

    Everything random in a batch is a function of the key, the epoch and the batch's number, and in a sample
    that is asked for alone, of its place in the batch: each is made with torch's, numpy's and Python's
    generators seeded from them, which are put back afterwards, and with a key in scope for our own draws. So
    batches are the same for any number of workers, from wherever an epoch is resumed, and while other threads
    read loaders of their own. Only a stream that is shared among workers has other batches for another number
    of them: each makes batches of its part, and with ``partial=False`` leaves out the rest of its part.

    For other orders than these, such as draws by weights, give a data set of the observations in that order,
    a ``torch.utils.data.Subset`` with their numbers or `mapobs` of these; or a stream that draws them.

    Args:
        data: see above.
        batch_size: observations a batch. (default: 1)
        shuffle: whether each epoch has a new order; of a stream, from how many samples, above 1, the next
            one is drawn. Arrays in order are views, but copies of numpy arrays that are read-only or laid
            out as torch has it not. (default: False)
        partial: whether a last, smaller batch is kept. (default: True)
        collate: from a list of samples to a batch. (default: trees of samples are stacked leaf by leaf:
            tensors, arrays and numbers to tensors, strings to lists)
        transform: from a batch to the batch that is given, in the worker if there are any. (default: none)
        key: what is drawn from: epoch i, from 0, has ``key.fold_in(i)``. (default: a draw in scope as an
            epoch starts; where there is no key, one of torch's generator, if anything may be random)
        workers: how many processes make batches ahead. Arrays without a `transform` are sliced in the
            main process all the same. A stream has one at most, unless it has a method
            ``shard(num_shards=…, index=…)`` that gives the stream for one of them. (default: 0)
        device: where to move batches, on CUDA one ahead, from pinned memory; or a mesh, whose ranks share the
            rows of every batch: see below. (default: they stay)

    With ``device=mesh`` all ranks make the same loader of the whole data, and read the same batches as one
    process would: `batch_size` counts the rows of all ranks, each reads and moves those that `shard_batch`
    would give it, and what comes is over the mesh. A batch whose rows can't be shared equally, such as a
    smaller last one, comes whole on each rank. A `collate` or `transform` of your own, which may look at all
    rows, and streams get whole batches on each rank, of which each keeps its rows; so let a data set or
    `mapobs` do what takes long for each observation. A leaf that is no tensor, such as a list of strings, is
    this rank's. As an epoch starts the ranks compare their settings and keys, and take the first rank's key
    where it is drawn from torch's generator.

    Iterating gives the batches, ``len`` is their number.

    Raises:
        TypeError: what is no data, such as a tree with a leaf that is no array or is sparse or masked, or an
            iterator, which can't be read anew; a `key` that is no Key; a stream that can't be shared among
            `workers`; an option of another name, for those of torch's DataLoader with what to write instead.
        ValueError: arrays of different lengths, a number out of range, a `shuffle` that is not for
            this kind of data, a `collate` for arrays, or a `key` where nothing is random; while iterating
            over a mesh, loaders or keys that differ from rank to rank.
        RuntimeError: while iterating: an observation, `collate` or `transform` raised the error that is
            its ``__cause__``, or a worker died; it names the epoch, the batch and the observation.

    Example:
        >>> import torch, fluxlike as fl
        >>> loader = fl.DataLoader((torch.arange(5), torch.arange(5) ** 2), batch_size=2)
        >>> [y.tolist() for x, y in loader]
        [[0, 1], [4, 9], [16]]
        >>> words = fl.DataLoader([("one", 1), ("two", 2)], batch_size=2, transform=lambda b: b[::-1])
        >>> list(words)
        [(tensor([1, 2]), ['one', 'two'])]
    """

    def __init__(
        self,
        data: Any,
        batch_size: int = 1,
        *,
        shuffle: bool | int = False,
        partial: bool = True,
        collate: Callable[[Sequence[Any]], Any] | None = None,
        transform: Callable[[Any], Any] | None = None,
        key: Key | None = None,
        workers: int = 0,
        device: torch.device | str | int | DeviceMesh | None = None,
    ) -> None:
        source = source_of(data)
        self._plain = isinstance(source, Arrays) and transform is None
        numbers = checked_settings(source, batch_size, shuffle, collate, workers, key, self._plain)
        self._source, self.partial = source, partial
        self.batch_size, self.shuffle, self.workers = numbers
        self._collate, self._transform, self._key = collate or stack_samples, transform, key
        self._mesh: DeviceMesh | None = None
        self._share = WHOLE
        self._one: torch.device | None = None
        if hasattr(device, "mesh_dim_names"):
            self._mesh = cast("DeviceMesh", device)
            self._share = share_of(self._mesh)
        elif device is not None:
            self._one = torch.device(device)
        self._cursor = Cursor()

    @property
    def device(self) -> torch.device | DeviceMesh | None:
        """Where batches come: a device, a mesh, or None for where they are made."""
        return self._one if self._mesh is None else self._mesh

    def __len__(self) -> int:
        n = self._source.observations
        if n is None or (isinstance(self._source, Stream) and self.workers > 1):
            raise TypeError(
                "the number of batches of this stream is unknown; go over it by for, and count by enumerate"
            )
        whole, rest = divmod(n, self.batch_size)
        return whole + (1 if rest and self.partial else 0)

    def __iter__(self) -> Iterator[Any]:
        cursor = self._cursor.following()
        epoch = self._agreed(
            cursor.epoch or self._next_epoch(cursor.number), cursor.batch, cursor.epoch is None
        )
        self._cursor = cursor.start(epoch)
        return self._cursor.counted(self._batches(epoch, cursor.batch))

    def epoch(self, number: int, start: int = 0) -> Iterator[Any]:
        """The batches of one epoch, from one of them on, whatever was iterated before.

        They are a function of the loader's arguments, its key (else the key in scope) and these numbers.
        Where there is no key, the epoch's is drawn from torch's generator. A stream is read from its
        beginning and the first batches are left out, unless it has a method ``skip(n)`` that gives the
        stream after n samples, and it is neither shuffled nor shared among workers. What such a stream draws
        for its order must come from a seed of its own, or be drawn as ``skip`` or ``__iter__`` is called: the
        body of a generator runs later, under the seed of the batch.

        Args:
            number: which epoch, from 0.
            start: the first batch to give. (default: 0)

        Returns:
            An iterator.

        Raises:
            ValueError: a negative number, a `start` behind the end, or one in an order that is drawn anew
                because there is no key.

        Example:
            >>> import torch, fluxlike as fl
            >>> loader = fl.DataLoader(torch.arange(100), 10, shuffle=True, key=fl.Key(0))
            >>> all_of_it = list(loader.epoch(3))
            >>> torch.equal(torch.cat(list(loader.epoch(3, start=8))), torch.cat(all_of_it[8:]))
            True
        """
        if number < 0 or start < 0:
            raise ValueError(f"epoch(number={number}, start={start}): epochs and batches count from 0")
        if not isinstance(self._source, Stream) and start > len(self):
            raise ValueError(f"epoch({number}, start={start}): the data makes {len(self)} batches")
        if self._draws and self._key is None and active() is None and start and self.shuffle:
            raise ValueError(
                f"epoch({number}, start={start}): without a key every call draws another order; write "
                "DataLoader(…, key=fluxlike.Key(0)), or keep the place by state_dict"
            )
        return self._batches(self._agreed(self._numbered_epoch(number), start, drawn=True), start)

    def state_dict(self) -> dict[str, Any]:
        """Where the latest iteration stands: a dict of numbers, strings and lists, as JSON has them.

        What counts are the batches that were given, whatever was made ahead.

        Returns:
            For `load_state_dict` of a loader with the same arguments.

        Example:
            >>> import torch, fluxlike as fl
            >>> loader = fl.DataLoader(torch.arange(6), 2, shuffle=True)
            >>> batches = iter(loader)
            >>> first = next(batches)
            >>> state = loader.state_dict()
            >>> again = fl.DataLoader(torch.arange(6), 2, shuffle=True)
            >>> again.load_state_dict(state)
            >>> [torch.equal(a, b) for a, b in zip(again, batches, strict=True)]
            [True, True]
        """
        return {**self._cursor.state(), "loader": self._settings()}

    def load_state_dict(self, state: Mapping[str, Any], /) -> None:
        """Let the next iteration go on where another one stood.

        It gives the rest of that epoch, and the iteration after it the next epoch. The state holds the key of
        the epoch, also where that was drawn from torch's generator, whose own state it does not hold. That
        the data is the same is for the caller to see to.

        Args:
            state: from `state_dict` of a loader with the same arguments.

        Raises:
            ValueError: it is of another loader, and says in what they differ, or no such state.
        """
        require_settings(state, self._settings())
        self._cursor = Cursor.of_state(state)

    def _settings(self) -> dict[str, Any]:
        shards = self.workers if isinstance(self._source, Stream) and self.workers > 1 else 1
        return {
            "source": type(self._source).__name__.lower(),
            "observations": self._source.observations,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "partial": self.partial,
            "shards": shards,
            "key": None if self._key is None else self._key.data.tolist(),
        }

    @property
    def _draws(self) -> bool:
        """Whether anything may be random."""
        return bool(self.shuffle) or not self._plain

    def _next_epoch(self, number: int) -> Epoch:
        if not self._draws:
            return Epoch(number)
        return drawn_epoch(number) if self._key is None else keyed_epoch(number, self._key)

    def _numbered_epoch(self, number: int) -> Epoch:
        if not self._draws:
            return Epoch(number)
        scope = active()
        key = scope.key.fold_in(_EPOCHS) if self._key is None and scope is not None else self._key
        return drawn_epoch(number) if key is None else keyed_epoch(number, key)

    def _agreed(self, epoch: Epoch, start: int, drawn: bool) -> Epoch:
        """The epoch, the same on all ranks."""
        if self._mesh is None:
            return epoch
        n = self._source.observations
        settings = {
            "the number of observations": -1 if n is None else n,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "partial": self.partial,
            "the first batch": start,
        }
        by_torch = drawn and self._key is None and self._draws and active() is None
        return agreed_epoch(epoch, by_torch, settings, self._mesh)

    def _batches(self, epoch: Epoch, start: int) -> Iterator[Any]:
        number = start
        try:
            with closing(self._made(epoch, start)) as made:
                for batch in self._placed(made, start):
                    yield batch
                    number += 1
        except (Failure, Death) as error:
            report(error, epoch.number, number)

    def _placed(self, made: Iterator[Any], start: int) -> Iterator[Any]:
        """The batches where they are to be."""
        if self._mesh is not None:
            n, size = self._stop, self.batch_size
            sizes = (min(size, n - first) for first in range(start * size, n, size)) if self._by_row else None
            return over_mesh(made, sizes, self._share, self._mesh)
        return made if self._one is None else moved(made, self._one)

    @property
    def _by_row(self) -> bool:
        """Whether a batch is nothing but its rows, so that each rank can make its own alone."""
        whole = isinstance(self._source, Stream) or self._transform is not None
        return not whole and self._collate is stack_samples

    @property
    def _stop(self) -> int:
        """How many observations an epoch has; 0 where that is not known."""
        n = self._source.observations or 0
        return n if self.partial else n - n % self.batch_size

    def _made(self, epoch: Epoch, start: int) -> Generator[Any]:
        """The batches as they come from where they are made."""
        source, size, stop = self._source, self.batch_size, self._stop
        buffer = 0 if isinstance(self.shuffle, bool) else self.shuffle
        share = self._share if self._by_row else WHOLE
        recipe = Recipe(epoch, size, self.partial, self._collate, self._transform, buffer, share)
        if isinstance(source, Stream):
            return _of_stream(recipe, source, start, self.workers)
        order = epoch.order(source.observations) if self.shuffle else None
        if isinstance(source, Arrays) and self._transform is None:
            return source.batches(order, size, start * size, stop, share)
        plan = Plan(order, size, stop, start)
        if self.workers:
            return rows_by_workers(recipe, source, plan, self.workers)
        return (recipe.batch(source, number, rows) for number, rows in plan)

    def __repr__(self) -> str:
        n = self._source.observations
        counted = "a stream" if n is None else f"{n} observations"
        more = f", workers={self.workers}" if self.workers else ""
        if self._mesh is not None:
            more += f", device={self._mesh}"
        elif self._one is not None:
            more += f", device={str(self._one)!r}"
        return (
            f"DataLoader({counted}, batch_size={self.batch_size}, shuffle={self.shuffle}, "
            f"partial={self.partial}{more})"
        )


def _of_stream(recipe: Recipe, stream: Stream, start: int, workers: int) -> Generator[Any]:
    """The batches of a stream from `start` on."""
    made = stream_by_workers(recipe, stream, start, workers) if workers else recipe.stream(stream, start)
    place = 0
    with closing(made):
        for item in made:
            if item is Mark.ENDED:
                break
            if isinstance(item, Made) and place >= start:
                yield item.batch
            place += 1
    if place < start:
        raise ValueError(
            f"epoch {recipe.epoch.number} can't start at batch {start}: the stream ended after {place} "
            "batches, so it is not the one that was read before"
        )
