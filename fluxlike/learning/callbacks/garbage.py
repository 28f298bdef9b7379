"""`GarbageCollect`: memory given back now and then."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from fluxlike.learning.callback import Callback

__all__ = ["GarbageCollect"]


@dataclass(frozen=True)
class GarbageCollect(Callback):
    """Collect Python's garbage every so many steps of training and as epochs end.

    On CUDA the memory that torch keeps for later goes back to the device too.

    Args:
        every: after how many steps. (default: 100)

    Raises:
        ValueError: not a whole number from 1.

    Example:
        >>> from fluxlike.learning.callbacks.garbage import GarbageCollect
        >>> GarbageCollect(every=1000)
        GarbageCollect(every=1000)
    """

    every: int = 100

    def __post_init__(self) -> None:
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ValueError(f"GarbageCollect has every={self.every!r}; write a number of steps, from 1")

    def step_end(self, run: Any) -> None:
        if run.phase == "training" and run.step % self.every == 0:
            _collect()

    def epoch_end(self, run: Any) -> None:
        _collect()


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
