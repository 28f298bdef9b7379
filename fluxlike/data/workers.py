"""Batches made by worker processes, of torch's DataLoader."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fluxlike._private.data_workers import Workers, become_the_only_one
from fluxlike.data.failures import Death, Failure, Told
from fluxlike.data.packing import packed
from fluxlike.data.recipe import Made, Mark, Plan, Recipe
from fluxlike.data.sources import Arrays, Samples, Stream

__all__ = ["rows_by_workers", "stream_by_workers"]


def rows_by_workers(recipe: Recipe, source: Arrays | Samples, plan: Plan, workers: int) -> Generator[Any]:
    """The batches of a plan, in order.

    Raises:
        Failure: of a batch.
        Death: of a worker.
    """
    if not len(plan):
        return
    with closing(_start(_Rows(recipe, source), min(workers, len(plan)), plan)) as running:
        for _ in range(len(plan)):
            yield _receive(running)


def stream_by_workers(recipe: Recipe, stream: Stream, start: int, workers: int) -> Generator[Made | Mark]:
    """The batches of a stream, of its shards in turn, as `Recipe.stream`; at last ``ENDED``.

    Raises:
        Failure: of a batch.
        Death: of a worker.
    """
    going = set(range(workers))
    with closing(_start(_Streams(recipe, stream, start), workers)) as running:
        for turn in count():
            made = _receive(running)
            if made is not Mark.ENDED:
                yield made
                continue
            going.discard(turn % workers)
            if not going:
                yield made
                return


def _start(tasks: Dataset[bytes], workers: int, plan: Plan | None = None) -> Workers:
    loader = DataLoader(
        tasks,
        batch_size=None,
        sampler=plan,
        num_workers=workers,
        collate_fn=_same,
        generator=torch.Generator("cpu"),  # so that torch does not draw a seed from its own
    )
    if torch.get_default_device().type == "cpu":
        return Workers(loader)
    with torch.device("cpu"):  # also in the workers, where it slows every operation down
        return Workers(loader)


def _receive(running: Workers) -> Any:
    try:
        received = running.next()
    except ChildProcessError as error:
        raise Death(str(error)) from error
    if isinstance(received, Told):
        failure = received.failure()
        raise failure from failure.__cause__
    return received


class _Tasks:
    """What a worker does, with the default dtype of the main process."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.dtype = recipe, torch.get_default_dtype()


class _Rows(_Tasks, Dataset[bytes]):
    """A data set whose items are batches, packed; their indices are their numbers and rows."""

    def __init__(self, recipe: Recipe, source: Arrays | Samples) -> None:
        super().__init__(recipe)
        self.source = source

    def __getitem__(self, task: Any) -> bytes:
        torch.set_default_dtype(self.dtype)
        number, rows = task
        try:
            return packed(self.recipe.batch(self.source, number, rows))
        except Failure as failure:
            return _packed_failure(failure)


class _Streams(_Tasks, IterableDataset[bytes]):
    """A data set that gives each worker the batches of its shard, packed, and ``ENDED`` for ever after."""

    def __init__(self, recipe: Recipe, stream: Stream, start: int) -> None:
        super().__init__(recipe)
        self.stream, self.start = stream, start

    def __iter__(self) -> Iterator[bytes]:
        torch.set_default_dtype(self.dtype)
        worker, workers = become_the_only_one()
        try:
            for made in self.recipe.stream(self.stream, self.start, worker, workers):
                yield packed(made)
        except Failure as failure:
            yield _packed_failure(failure)
        while True:
            yield packed(Mark.ENDED)


def _packed_failure(failure: Failure) -> bytes:
    return packed(Told(failure, f"the worker process {os.getpid()}"))


def _same(item: Any) -> Any:
    return item
