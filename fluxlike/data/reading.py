"""Samples of a batch read as if each were read alone: what one of them draws depends on no other."""

from __future__ import annotations

from typing import Any

from fluxlike.data.epoch import Epoch
from fluxlike.data.failures import Failure
from fluxlike.data.share import Share
from fluxlike.data.sources import Rows, Samples

__all__ = ["read"]


def read(source: Samples, rows: Rows, share: Share, epoch: Epoch, number: int, /) -> list[Any]:
    """The samples of this rank's share of a batch.

    What is drawn for a sample is a function of the epoch, the batch and its place there; for samples that are
    read several at once, of the epoch and the batch. So ranks that read a batch together read what one
    process would.

    Args:
        source: what is read.
        rows: of the whole batch.
        share: which of them.
        epoch: that of the batch.
        number: of the batch.

    Raises:
        Failure: the data set raised something.
    """
    part = share.of(len(rows))
    if source.at_once:
        return _together(source, rows, part, epoch, number)
    found = [] if source.habits.draws else _without_draws(source, rows[part], epoch, number)
    if len(found) < part.stop - part.start:
        with epoch.seeded(number):
            for place in range(part.start + len(found), part.stop):
                with epoch.reseeded(number, place):
                    found += source.take(rows[place : place + 1])
    return found


def _without_draws(source: Samples, rows: Rows, epoch: Epoch, number: int) -> list[Any]:
    """The first samples up to where one draws: a seed for each would take longer than many data sets."""
    found: list[Any] = []
    first = 0 if source.habits.known else 1  # most data sets that ever draw do so for the first sample
    for some in (rows[:first], rows[first:]):
        if not some:
            continue
        with epoch.seeded(number) as drawn:
            try:
                samples = source.take(some)
            except Failure:
                if not drawn():
                    raise
                source.habits.draws = True
                return found
            if drawn():
                source.habits.draws = True
                return found
        source.habits.known = True
        found += samples
    return found


def _together(source: Samples, rows: Rows, part: slice, epoch: Epoch, number: int) -> list[Any]:
    """Samples of ``__getitems__``: all of the batch, and then this rank's, where it draws."""
    if part.stop - part.start == len(rows) or not source.habits.draws:
        with epoch.seeded(number) as drawn:
            found = source.take(rows[part])
            if part.stop - part.start == len(rows) or not drawn():
                return found
        source.habits.draws = True
    with epoch.seeded(number):
        return source.take(rows)[part]
