"""Schedules made of schedules."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxlike.schedules.schedule import (
    Formula,
    Schedule,
    check_length,
    check_schedule,
    check_values,
    value_at,
)
from fluxlike.trees.functor import functor
from fluxlike.trees.show import value_text

__all__ = ["Interpolate", "Loop", "Sequence", "Shifted", "Warmup"]


@functor
@dataclass(frozen=True)
class Warmup(Formula):
    """A linear rise to a schedule's first value, then the schedule.

    Args:
        schedule: what follows; for a number, ``Constant(0.1)``.
        steps: how many steps the rise takes.
        start: the first value. (default: 0)

    Raises:
        ValueError: `steps` is not above 0.
        TypeError: `schedule` can't be called with a step, or `steps` or `start` is no number.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Warmup(fl.schedules.Exp(1.0, 0.5), 2)(t) for t in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
    """

    schedule: Schedule
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        check_length(self, "steps", self.steps)
        check_schedule(self, self.schedule)
        check_values(self, "start")

    def _at(self, t: Tensor) -> Tensor:
        first = value_at(self.schedule, torch.zeros_like(t))
        rise = self.start + (first - self.start) * t / self.steps
        return torch.where(t < self.steps, rise, value_at(self.schedule, (t - self.steps).clamp(min=0)))


@functor
@dataclass(frozen=True, init=False)
class Sequence(Formula):
    """Schedules one after the other, each from its own step 0; the last holds its last value.

    Args:
        parts: pairs of a schedule and its number of steps.

    Raises:
        ValueError: no part, or a number of steps that is not above 0.
        TypeError: something that is no pair of a schedule and a number of steps.

    Example:
        >>> import fluxlike as fl
        >>> s = fl.schedules
        >>> [s.Sequence((s.Constant(1.0), 2), (s.Exp(0.5, 0.5), 2))(t) for t in range(6)]
        [1.0, 1.0, 0.5, 0.25, 0.25, 0.25]
    """

    parts: tuple[tuple[Schedule, int], ...]

    def __init__(self, *parts: tuple[Schedule, int]) -> None:
        if not parts:
            raise ValueError("Sequence needs at least one pair of a schedule and its number of steps")
        for part in parts:
            if isinstance(part, (list, tuple)) and part and all(isinstance(p, (list, tuple)) for p in part):
                raise TypeError(f"Sequence got a {type(part).__name__} of pairs; write Sequence(*pairs)")
            if not isinstance(part, (list, tuple)) or len(part) != 2:
                raise TypeError(
                    f"Sequence takes pairs of a schedule and its number of steps, found {value_text(part)}; "
                    f"write {self._written()}"
                )
            check_length(self, "steps", part[1])
            check_schedule(self, part[0])
        object.__setattr__(self, "parts", tuple((schedule, n) for schedule, n in parts))

    @classmethod
    def _written(cls) -> str:
        return "Sequence((schedule, steps), …)"

    def _at(self, t: Tensor) -> Tensor:
        begin = 0
        value = torch.zeros_like(t)
        for schedule, n in self.parts:
            local = (t - begin).clamp(0, n - 1)
            value = torch.where(t >= begin, value_at(schedule, local), value)
            begin += n
        return value


@functor
@dataclass(frozen=True)
class Loop(Formula):
    """The first steps of a schedule, over and over.

    Args:
        schedule: the schedule.
        steps: how many of its steps.

    Raises:
        ValueError: `steps` is not above 0.
        TypeError: `schedule` can't be called with a step, or `steps` is no number.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Loop(fl.schedules.Exp(1.0, 0.5), 2)(t) for t in range(4)]
        [1.0, 0.5, 1.0, 0.5]
    """

    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        check_length(self, "steps", self.steps)
        check_schedule(self, self.schedule)

    def _at(self, t: Tensor) -> Tensor:
        return value_at(self.schedule, torch.remainder(t, self.steps))


@functor
@dataclass(frozen=True)
class Shifted(Formula):
    """A schedule that begins at a later step of its own: ``schedule(t + by)``.

    Args:
        schedule: the schedule.
        by: how many steps it is ahead.

    Raises:
        TypeError: `schedule` can't be called with a step, or `by` is no number.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Shifted(fl.schedules.Exp(1.0, 0.5), 2)(0)
        0.25
    """

    schedule: Schedule
    by: int

    def __post_init__(self) -> None:
        check_values(self, "by")
        check_schedule(self, self.schedule)

    def _at(self, t: Tensor) -> Tensor:
        return value_at(self.schedule, t + self.by)


@functor
@dataclass(frozen=True)
class Interpolate(Formula):
    """A schedule at fractions of its steps: ``schedule(t/rate)``, such as one written in epochs.

    Args:
        schedule: the schedule.
        rate: steps for one of its own.

    Raises:
        ValueError: `rate` is not above 0.
        TypeError: `schedule` can't be called with a step, or `rate` is no number.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Interpolate(fl.schedules.Poly(1.0, 1, 10), 100)(250)
        0.75
    """

    schedule: Schedule
    rate: float

    def __post_init__(self) -> None:
        check_length(self, "rate", self.rate)
        check_schedule(self, self.schedule)

    def _at(self, t: Tensor) -> Tensor:
        return value_at(self.schedule, t / self.rate)
