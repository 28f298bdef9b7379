"""Schedules: hyperparameters as functions of the step, which counts from 0.

A schedule is called with a step: a number gives a float, a tensor (any shape) a float64 tensor. Past
its end it holds its last value. Schedules compose, and are trees, so they are saved with a state.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from fluxlike.trees.functor import functor

__all__ = [
    "Constant", "Cosine", "Exp", "Interpolate", "Inv", "Loop", "OneCycle", "Poly", "Schedule", "Sequence",
    "Shifted", "Sin", "Step", "Triangle", "Warmup",
]  # fmt: skip


class Schedule(Protocol):
    """Anything that gives a value for a step."""

    def __call__(self, step: Any, /) -> Any:
        """The value at a step: a float for a number, a tensor for a tensor."""


class _Formula:
    """A schedule written as a formula over a float64 tensor of steps."""

    prints_itself = True  # on one line, as it is written

    def __call__(self, step: Any, /) -> Any:
        if isinstance(step, Tensor):
            return self._at(step.to(torch.float64))
        value = self._at(torch.tensor(float(step), dtype=torch.float64))
        return value if any(isinstance(x, Tensor) for x in vars(self).values()) else value.item()

    def _at(self, t: Tensor) -> Tensor:
        raise NotImplementedError


def _value(schedule: Schedule, t: Tensor) -> Tensor:
    """Any schedule, also a user's function of numbers, at a tensor of steps."""
    value = schedule(t)
    return value if isinstance(value, Tensor) else torch.full_like(t, value)


def _length(name: str, n: Any) -> None:
    if not isinstance(n, (int, float)):
        raise TypeError(f"{name} is a {type(n).__name__}; write a number of steps, after the schedule")
    if not n > 0:
        raise ValueError(f"{name}={n!r}: write a number of steps above 0")


@functor
@dataclass(frozen=True)
class Constant(_Formula):
    """The same value at every step.

    Args:
        value: the value.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Constant(0.1)(1000)
        0.1
    """

    value: float

    def _at(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.value)


@functor
@dataclass(frozen=True)
class Step(_Formula):
    """``start·decay^k`` after k completed spans, as torch's StepLR and MultiStepLR.

    Args:
        start: the first value.
        decay: the factor after each span.
        sizes: the length of every span, or the lengths of the spans one by one; after the last of
            them the value stays.

    Raises:
        ValueError: a length that is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Step(1.0, 0.5, 2)(t) for t in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
        >>> [fl.schedules.Step(1.0, 0.5, (1, 2))(t) for t in range(5)]
        [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    start: float
    decay: float
    sizes: int | Seq[int]

    def __post_init__(self) -> None:
        for n in (self.sizes,) if isinstance(self.sizes, int) else self.sizes:
            _length("sizes", n)

    def _at(self, t: Tensor) -> Tensor:
        if isinstance(self.sizes, int):
            completed = torch.floor(t / self.sizes)
        else:
            ends = torch.cumsum(torch.tensor(self.sizes, dtype=t.dtype, device=t.device), 0)
            completed = (t.unsqueeze(-1) >= ends).sum(-1).to(t.dtype)
        return self.start * self.decay**completed


@functor
@dataclass(frozen=True)
class Exp(_Formula):
    """``start·decayᵗ``, as torch's ExponentialLR.

    Args:
        start: the first value.
        decay: the factor at each step.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Exp(1.0, 0.5)(3)
        0.125
    """

    start: float
    decay: float

    def _at(self, t: Tensor) -> Tensor:
        return self.start * self.decay**t


@functor
@dataclass(frozen=True)
class Inv(_Formula):
    """``start/(1 + t·decay)^power``.

    Args:
        start: the first value.
        decay: how fast it falls.
        power: the exponent.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Inv(1.0, 0.5, 2)(2)
        0.25
    """

    start: float
    decay: float
    power: float

    def _at(self, t: Tensor) -> Tensor:
        return self.start / (1 + t * self.decay) ** self.power


@functor
@dataclass(frozen=True)
class Poly(_Formula):
    """``start·(1 - t/steps)^power``, then 0, as torch's PolynomialLR.

    Args:
        start: the first value.
        power: the exponent.
        steps: after how many steps it is 0.

    Raises:
        ValueError: `steps` is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Poly(1.0, 2, 2)(t) for t in range(4)]
        [1.0, 0.25, 0.0, 0.0]
    """

    start: float
    power: float
    steps: int

    def __post_init__(self) -> None:
        _length("steps", self.steps)

    def _at(self, t: Tensor) -> Tensor:
        return self.start * (1 - t / self.steps).clamp(min=0) ** self.power


@functor
@dataclass(frozen=True)
class Cosine(_Formula):
    """``low + (high - low)·(1 + cos(π·t/steps))/2``, then low (Loshchilov & Hutter 2017, SGDR).

    Args:
        high: the first value.
        low: the last value.
        steps: after how many steps it is reached.
        restart: whether to begin again from `high` each time, instead of staying. (default: False)

    Raises:
        ValueError: `steps` is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> [round(fl.schedules.Cosine(1.0, 0.0, 4)(t), 4) for t in range(6)]
        [1.0, 0.8536, 0.5, 0.1464, 0.0, 0.0]
    """

    high: float
    low: float
    steps: int
    restart: bool = False

    def __post_init__(self) -> None:
        _length("steps", self.steps)

    def _at(self, t: Tensor) -> Tensor:
        t = torch.remainder(t, self.steps) if self.restart else t.clamp(max=self.steps)
        return self.low + (self.high - self.low) * (1 + torch.cos(math.pi * t / self.steps)) / 2


@functor
@dataclass(frozen=True)
class Triangle(_Formula):
    """A triangle wave from `low` up to `high` in the middle of each period (Smith 2017), and back.

    Args:
        low: the value at the ends of a period.
        high: the value in the middle of the first.
        period: steps a period.
        decay: the factor of the height from one period to the next; 0.5 is torch's triangular2.
            (default: 1)

    Raises:
        ValueError: `period` is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Triangle(0.0, 1.0, 4, decay=0.5)(t) for t in range(8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]
    """

    low: float
    high: float
    period: int
    decay: float = 1.0

    def __post_init__(self) -> None:
        _length("period", self.period)

    def _at(self, t: Tensor) -> Tensor:
        phase = torch.remainder(t, self.period) / self.period
        height = (self.high - self.low) * self.decay ** torch.floor(t / self.period)
        return self.low + height * (1 - (2 * phase - 1).abs())


@functor
@dataclass(frozen=True)
class Sin(_Formula):
    """A wave of half sines from `low` up to `high` in the middle of each period, and back.

    Args:
        low: the value at the ends of a period.
        high: the value in the middle of the first.
        period: steps a period.
        decay: the factor of the height from one period to the next. (default: 1)

    Raises:
        ValueError: `period` is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> [round(fl.schedules.Sin(0.0, 1.0, 4)(t), 4) for t in range(5)]
        [0.0, 0.7071, 1.0, 0.7071, 0.0]
    """

    low: float
    high: float
    period: int
    decay: float = 1.0

    def __post_init__(self) -> None:
        _length("period", self.period)

    def _at(self, t: Tensor) -> Tensor:
        phase = torch.remainder(t, self.period) / self.period
        height = (self.high - self.low) * self.decay ** torch.floor(t / self.period)
        return self.low + height * torch.sin(math.pi * phase).abs()


@functor
@dataclass(frozen=True)
class OneCycle(_Formula):
    """One rise and one fall (Smith & Topin 2018): start → high over `pct` of the steps, → end.

    Args:
        steps: after how many steps the end is reached.
        high: the largest value.
        start: the first value. (default: high/25)
        end: the last value. (default: high/1e5)
        pct: the share of the steps that rises. (default: 0.25)
        shape: ``"cosine"`` for half cosines, as in torch; ``"sine"`` for a quarter sine up and a quarter
            cosine down, as in FluxTraining.jl. (default: "cosine")

    Raises:
        ValueError: `steps` is not above 0, `pct` is outside (0, 1), or another shape.

    Example:
        >>> import fluxlike as fl
        >>> cycle = fl.schedules.OneCycle(100, 0.01, shape="sine")
        >>> [f"{cycle(t):.4g}" for t in (0, 12, 25, 62, 99)]
        ['0.0004', '0.006972', '0.01', '0.007145', '0.0002095']
    """

    steps: int
    high: float
    start: float | None = None
    end: float | None = None
    pct: float = 0.25
    shape: Literal["cosine", "sine"] = "cosine"

    def __post_init__(self) -> None:
        _length("steps", self.steps)
        if self.steps != int(self.steps):
            raise ValueError(
                f"steps={self.steps!r}: write a whole number of steps first, then the highest value: "
                "OneCycle(1000, 1e-2)"
            )
        if not 0 < self.pct < 1:
            raise ValueError(f"pct={self.pct!r}: write a share between 0 and 1")
        if self.shape not in ("cosine", "sine"):
            raise ValueError(f"shape={self.shape!r}: write 'cosine' or 'sine'")

    def _at(self, t: Tensor) -> Tensor:
        start = self.high / 25 if self.start is None else self.start
        end = self.high / 1e5 if self.end is None else self.end
        top = self.pct * self.steps
        up = (t / top).clamp(0, 1)
        down = ((t - top) / (self.steps - top)).clamp(0, 1)
        if self.shape == "sine":
            rise, fall = torch.sin(math.pi / 2 * up), torch.cos(math.pi / 2 * down)
        else:
            rise, fall = (1 - torch.cos(math.pi * up)) / 2, (1 + torch.cos(math.pi * down)) / 2
        return torch.where(t < top, start + (self.high - start) * rise, end + (self.high - end) * fall)


@functor
@dataclass(frozen=True)
class Warmup(_Formula):
    """A linear rise to a schedule's first value, then the schedule.

    Args:
        schedule: what follows.
        steps: how many steps the rise takes.
        start: the first value. (default: 0)

    Raises:
        ValueError: `steps` is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Warmup(fl.schedules.Exp(1.0, 0.5), 2)(t) for t in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.25]
    """

    schedule: Schedule
    steps: int
    start: float = 0.0

    def __post_init__(self) -> None:
        _length("steps", self.steps)

    def _at(self, t: Tensor) -> Tensor:
        first = _value(self.schedule, torch.zeros_like(t))
        rise = self.start + (first - self.start) * t / self.steps
        return torch.where(t < self.steps, rise, _value(self.schedule, (t - self.steps).clamp(min=0)))


@functor
@dataclass(frozen=True, init=False)
class Sequence(_Formula):
    """Schedules one after the other, each from its own step 0; the last holds its last value.

    Args:
        parts: pairs of a schedule and its number of steps.

    Raises:
        ValueError: no part, or a number of steps that is not above 0.

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
        for _, n in parts:
            _length("steps", n)
        object.__setattr__(self, "parts", parts)

    def _at(self, t: Tensor) -> Tensor:
        begin = 0
        value = torch.zeros_like(t)
        for schedule, n in self.parts:
            local = (t - begin).clamp(0, n - 1)
            value = torch.where(t >= begin, _value(schedule, local), value)
            begin += n
        return value


@functor
@dataclass(frozen=True)
class Loop(_Formula):
    """The first steps of a schedule, over and over.

    Args:
        schedule: the schedule.
        steps: how many of its steps.

    Raises:
        ValueError: `steps` is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Loop(fl.schedules.Exp(1.0, 0.5), 2)(t) for t in range(4)]
        [1.0, 0.5, 1.0, 0.5]
    """

    schedule: Schedule
    steps: int

    def __post_init__(self) -> None:
        _length("steps", self.steps)

    def _at(self, t: Tensor) -> Tensor:
        return _value(self.schedule, torch.remainder(t, self.steps))


@functor
@dataclass(frozen=True)
class Shifted(_Formula):
    """A schedule that begins at a later step of its own: ``schedule(t + by)``.

    Args:
        schedule: the schedule.
        by: how many steps it is ahead.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Shifted(fl.schedules.Exp(1.0, 0.5), 2)(0)
        0.25
    """

    schedule: Schedule
    by: int

    def _at(self, t: Tensor) -> Tensor:
        return _value(self.schedule, t + self.by)


@functor
@dataclass(frozen=True)
class Interpolate(_Formula):
    """A schedule at fractions of its steps: ``schedule(t/rate)``, such as one written in epochs.

    Args:
        schedule: the schedule.
        rate: steps for one of its own.

    Raises:
        ValueError: `rate` is not above 0.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Interpolate(fl.schedules.Poly(1.0, 1, 10), 100)(250)
        0.75
    """

    schedule: Schedule
    rate: float

    def __post_init__(self) -> None:
        _length("rate", self.rate)

    def _at(self, t: Tensor) -> Tensor:
        return _value(self.schedule, t / self.rate)
