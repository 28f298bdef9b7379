"""Random draws of every kind under one key: torch's, numpy's, Python's and ours."""

from __future__ import annotations

import os
import random
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.random import mtrand
from torch import Tensor
from torch.utils.data import get_worker_info

from fluxlike.scope.key import Key
from fluxlike.scope.seeded import active, seeded

__all__ = ["Drawn", "alone", "reseeded", "seeded_everywhere"]


@contextmanager
def alone() -> Iterator[None]:
    """Draw from the generators of the process while no other thread does, in one of these blocks.

    Warns:
        RuntimeWarning: another thread has been drawing for a minute, and may wait for this one.
    """
    turn = _turn
    if not turn.acquire(timeout=_PATIENCE):
        warnings.warn(
            f"this thread has waited {_PATIENCE} s for another one to make a batch, and waits on: both draw "
            "from the generators of the process. If the other one's data set waits for this thread, "
            "neither ends: give the DataLoader that is read in this thread a key, and workers=1",
            RuntimeWarning,
            stacklevel=3,
        )
        turn.acquire()
    try:
        yield
    finally:
        turn.release()


# In seconds.
_PATIENCE = 60

# It may be taken again by the thread that has it, whose data set may read another loader.
_turn = threading.RLock()


def _renew_turn() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_turn)  # where no other thread is left to give it back


class Drawn:
    """Whether anything was drawn since the generators were seeded from a key."""

    def __init__(self, key: Key) -> None:
        self._key, self._scope = key, active()
        self._torch = _torch_states()

    def __call__(self) -> bool:
        """Ask once, and draw nothing afterwards: it draws itself, to compare."""
        scope = self._scope
        if scope is not None and scope.mark():
            return True
        if not all(map(torch.equal, self._torch, _torch_states())):
            return True
        found = random.getrandbits(64), mtrand.random_sample()
        _seed_others(self._key)
        return found != (random.getrandbits(64), mtrand.random_sample())


def _torch_states() -> list[Tensor]:
    cards = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    return [torch.default_generator.get_state(), *cards]


@contextmanager
def seeded_everywhere(key: Key, /) -> Iterator[Drawn]:
    """Put a key in scope as `seeded` does, and numpy's and Python's global generators under it too.

    The generators are put back at the end, but for numpy's and Python's in a worker of a loader, where nobody
    else draws. They belong to the process, so one thread waits for another.

    Args:
        key: one key.

    Yields:
        What says whether anything was drawn inside.

    Raises:
        TypeError: no Key.
        ValueError: several keys.

    Example:
        >>> import numpy as np, fluxlike as fl
        >>> from fluxlike.data.seeding import seeded_everywhere
        >>> with seeded_everywhere(fl.Key(0)):
        ...     first = np.random.rand()
        >>> with seeded_everywhere(fl.Key(0)):
        ...     first == np.random.rand()
        True
    """
    with alone():
        if get_worker_info() is not None:
            with reseeded(key) as drawn:
                yield drawn
            return
        before, held = random.getstate(), _exchange()
        try:
            with reseeded(key) as drawn:
                yield drawn
        finally:
            _put_back(held)
            random.setstate(before)


@contextmanager
def reseeded(key: Key, /) -> Iterator[Drawn]:
    """Another key, inside `seeded_everywhere`; numpy's and Python's generators are not put back to its."""
    with seeded(key):
        _seed_others(key)
        yield Drawn(key)


def _seed_others(key: Key) -> None:
    low, high = key.data.tolist()
    random.seed(high << 32 | low)
    mtrand.seed([low, high, _NUMPY])


# Both are a Mersenne twister, which draws the same from the same words.
_NUMPY = int.from_bytes(b"np", "big")

# A generator to take the place of numpy's is quick to seed and slow to make.
_spare: list[Any] = []


def _exchange() -> tuple[Any, Any, dict[str, Any]]:
    """Another generator in the place of numpy's; returns what `_put_back` takes."""
    state: Any = mtrand.get_state(legacy=False)
    found = mtrand.get_bit_generator()
    other = _spare.pop() if _spare else np.random.MT19937(0)
    mtrand.set_bit_generator(other)
    return found, other, state


def _put_back(held: tuple[Any, Any, dict[str, Any]]) -> None:
    found, other, state = held
    mtrand.set_bit_generator(found)
    if state["has_gauss"]:  # a normal number that was drawn already, which goes with the exchange
        mtrand.set_state(state)
    _spare.append(other)
