"""The batches of an epoch, of our loaders and of anything else that can be iterated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fluxlike.learning.randomness import Seeds
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import seeded

__all__ = ["epoch_of"]


def epoch_of(data: Any, number: int, start: int, key: Key, /) -> Iterator[Any]:
    """The batches of an epoch, from one of them on: a function of the data, the key and these numbers.

    Args:
        data: a `DataLoader`, or anything that can be iterated anew.
        number: of the epoch, from 0.
        start: how many batches to leave out.
        key: what draws are a function of, for all epochs.

    Raises:
        ValueError: there are no more batches than those to leave out, and were when they were taken.
    """
    if hasattr(data, "epoch"):
        with seeded(key):
            return iter(data.epoch(number, start=start))
    if isinstance(data, (list, tuple)):
        if start > len(data):
            raise ValueError(_shorter(len(data), start))
        return iter(data[start:])
    batches = _drawn(data, number, key)
    for i in range(start):
        if next(batches, _END) is _END:
            raise ValueError(_shorter(i, start))
    return batches


def _shorter(length: int, start: int) -> str:
    return (
        f"the data ended after {length} batches, and the learner has taken {start} of this epoch: it is not "
        "the data that it was trained on"
    )


_END = object()


def _drawn(data: Any, number: int, key: Key) -> Iterator[Any]:
    """Batches that may draw as they are made: each is seeded, whatever the steps between them draw."""
    seeds = Seeds(key.fold_in(number))
    seeds.begin()
    generators = _generators(data)
    states = [generator.get_state() for generator in generators]
    try:
        for generator in generators:
            generator.manual_seed(torch.initial_seed())
        with seeded(seeds.key):
            batches = iter(data)
        i = 0
        while True:
            seeds.begin(i)
            batch = next(batches, _END)
            if batch is _END:
                return
            yield batch
            i += 1
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)


def _generators(data: Any) -> list[torch.Generator]:
    """The generators that a loader of torch has been given."""
    found = [getattr(x, "generator", None) for x in (data, getattr(data, "sampler", None))]
    return list({id(g): g for g in found if isinstance(g, torch.Generator)}.values())
