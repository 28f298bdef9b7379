"""What a schedule is, and what those written as formulas share."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Formula", "Schedule", "check_length", "value_at"]


class Schedule(Protocol):
    """Anything that gives a value for a step."""

    def __call__(self, step: Any, /) -> Any:
        """The value at a step: a float for a number, a tensor for a tensor."""


class Formula:
    """A schedule written as a formula over a float64 tensor of steps; base of the built-in ones."""

    prints_itself = True  # on one line, as it is written

    def __call__(self, step: Any, /) -> Any:
        if isinstance(step, Tensor):
            return self._at(step.to(torch.float64))
        value = self._at(torch.tensor(float(step), dtype=torch.float64))
        return value if any(isinstance(x, Tensor) for x in vars(self).values()) else value.item()

    def _at(self, t: Tensor) -> Tensor:
        raise NotImplementedError


def value_at(schedule: Schedule, t: Tensor) -> Tensor:
    """Any schedule, also a user's function of numbers, at a tensor of steps."""
    value = schedule(t)
    return value if isinstance(value, Tensor) else torch.full_like(t, value)


def check_length(name: str, n: Any) -> None:
    """Refuse what is no number of steps above 0."""
    if not isinstance(n, (int, float)):
        after = ", after the schedule" if callable(n) else ""
        raise TypeError(f"{name} is a {type(n).__name__}; write a number of steps{after}")
    if not n > 0:
        raise ValueError(f"{name}={n!r}: write a number of steps above 0")
