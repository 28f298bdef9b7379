"""What an epoch is a function of: its number and its key."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxlike import random
from fluxlike.data.order import random_order
from fluxlike.data.seeding import Drawn, alone, reseeded, seeded_everywhere
from fluxlike.scope.blocks import Domain, block
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import active

__all__ = ["Epoch", "drawn_epoch", "keyed_epoch"]


@dataclass(frozen=True)
class Epoch:
    """One pass over the data.

    Args:
        number: from 0.
        words: the two words of its key. (default: none, nothing is drawn)
        by_torch: whether the order is drawn by a generator of torch's, which is faster than the key's.
    """

    number: int
    words: tuple[int, int] | None = None
    by_torch: bool = False

    def order(self, n: int) -> Tensor:
        """The order of n observations."""
        low, high = self._drawn()
        if not self.by_torch:
            with alone():
                return random_order(n, Key(low | high << 32))
        generator = torch.Generator("cpu").manual_seed(high >> 1 << 32 | low)
        return torch.randperm(n, generator=generator, device="cpu")

    def seed(self) -> int:
        """A seed for a generator of its own, apart from the order and the batches."""
        low, high = self._folded(_BUFFER)
        return low | high << 32

    def seeded(self, batch: int) -> AbstractContextManager[Drawn]:
        """Everything random that is drawn inside is a function of this epoch and the batch's number."""
        low, high = self._folded(batch)
        return seeded_everywhere(Key(low | high << 32))

    def reseeded(self, batch: int, row: int) -> AbstractContextManager[Drawn]:
        """Inside `seeded`: everything random is a function of the row's place in the batch besides."""
        low, high, *_ = block(row, Domain.FOLD.number(), *self._folded(batch))
        return reseeded(Key(low | high << 32))

    def opening(self) -> AbstractContextManager[Drawn]:
        """As `seeded`, for opening a stream: the same in every shard and from wherever it is gone on with."""
        return self.seeded(_OPENING)

    def _folded(self, i: int) -> tuple[int, int]:
        low, high, *_ = block(i, Domain.FOLD.number(), *self._drawn())
        return low, high

    def _drawn(self) -> tuple[int, int]:
        if self.words is None:
            raise RuntimeError("nothing is drawn in this epoch")
        return self.words


# In the place of a batch's number.
_BUFFER, _OPENING = -1, -2


def keyed_epoch(number: int, key: Key) -> Epoch:
    """The epoch that a loader's key makes."""
    return Epoch(number, _words(key.fold_in(number).data))


def drawn_epoch(number: int) -> Epoch:
    """An epoch whose key is the next draw in scope; where there is no key, one of torch's generator."""
    with alone():
        words = _words(random.integers((2,), 0, 1 << 32, device="cpu"))
    return Epoch(number, words, by_torch=active() is None)


def _words(data: Tensor) -> tuple[int, int]:
    low, high = data.tolist()
    return low, high
