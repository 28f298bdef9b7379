"""`GarbageCollect`: memory given back now and then."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import Any

import torch

from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.every import checked_every

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
        checked_every("GarbageCollect", self.every)

    def step_end(self, run: Any) -> None:
        if run.trains and run.step % self.every == 0:
            _collect()

    def epoch_end(self, run: Any) -> None:
        _collect()


def _collect() -> None:
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
