"""The randomness of a fit: seeded from the learner's key, and put back at the end."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fluxlike.scope.key import Key

__all__ = ["Seeds", "kept", "random_states", "set_random_states"]

_AHEAD = 256  # batches whose seeds are computed together
_APPLE = torch.backends.mps.is_available()


@contextmanager
def kept() -> Iterator[None]:
    """Put the random states of torch, numpy and Python back afterwards."""
    states = random_states()
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    apple = torch.mps.get_rng_state() if _APPLE else None
    try:
        yield
    finally:
        set_random_states(states)
        if cards is not None:
            torch.cuda.set_rng_state_all(cards)
        if apple is not None:
            torch.mps.set_rng_state(apple)


def random_states() -> dict[str, Any]:
    """The states of the generators of torch, numpy and Python in main memory, as nested dicts of arrays."""
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "python": {"version": version, "words": np.array(words, dtype=np.int64), "gauss": gauss},
    }


def set_random_states(states: Mapping[str, Any], /) -> None:
    """Let torch, numpy and Python draw on from `random_states`."""
    own = states["python"]
    torch.set_rng_state(states["torch"])
    np.random.set_state(states["numpy"])  # noqa: NPY002
    random.setstate((own["version"], tuple(own["words"].tolist()), own["gauss"]))


class Seeds:
    """The seeds of one epoch of one phase: batch i draws from ``key.fold_in(i)``."""

    def __init__(self, key: Key) -> None:
        self.key = key
        self._first = 0
        self._seeds: list[int] = []

    def begin(self, i: int = -1, /) -> None:
        """Seed torch, numpy and Python, for an epoch or for a batch."""
        seed = self._seed(i)
        torch.default_generator.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)

    def step(self, i: int, /) -> None:
        """Seed torch, on all devices, for batch i."""
        seed = self._seed(i)
        torch.default_generator.manual_seed(seed)
        if torch.cuda.is_initialized():
            for generator in torch.cuda.default_generators:
                generator.manual_seed(seed)
        if _APPLE:
            torch.mps.manual_seed(seed % 2**32)

    def _seed(self, i: int) -> int:
        place = i - self._first
        if not 0 <= place < len(self._seeds):
            words = self.key.fold_in(torch.arange(i, i + _AHEAD)).data.tolist()
            self._first, self._seeds, place = i, [low | high << 32 for low, high in words], 0
        return self._seeds[place]
