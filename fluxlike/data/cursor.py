"""Where an iteration over a loader stands, and what of it is saved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from fluxlike.data.epoch import Epoch

__all__ = ["Cursor"]


@dataclass
class Cursor:
    """How many batches of an epoch were given.

    Args:
        number: of the epoch.
        batch: how many batches of it were given.
        epoch: what it is a function of, once that is known.
        started: whether an iteration moves this; else it is where the next one begins.
        ended: whether the epoch was gone through.
    """

    number: int = 0
    batch: int = 0
    epoch: Epoch | None = None
    started: bool = False
    ended: bool = False

    def following(self) -> Cursor:
        """Where the next iteration begins."""
        return Cursor(self.number + 1) if self.started else self

    def start(self, epoch: Epoch) -> Cursor:
        """The place of an iteration that begins here."""
        return Cursor(self.number, self.batch, epoch, started=True)

    def counted(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The batches, each counted as it is given."""
        with closing(batches):  # type: ignore[type-var]
            for batch in batches:
                self.batch += 1
                yield batch
        self.ended = True

    def state(self) -> dict[str, Any]:
        """Numbers and lists, for `of_state`."""
        if self.ended:
            return Cursor(self.number + 1).state()
        words = None if self.epoch is None or self.epoch.words is None else list(self.epoch.words)
        by_torch = self.epoch is not None and self.epoch.by_torch
        return {"epoch": self.number, "batch": self.batch, "drawn_from": words, "by_torch": by_torch}

    @classmethod
    def of_state(cls, state: Mapping[str, Any]) -> Cursor:
        number, batch, words = state["epoch"], state["batch"], state["drawn_from"]
        if words is None:
            return cls(number, batch, Epoch(number) if batch else None)
        low, high = words
        return cls(number, batch, Epoch(number, (low, high), state["by_torch"]))
