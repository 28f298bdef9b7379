"""Schedules that rise and fall: waves, and a single cycle."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fluxlike.schedules.schedule import Formula, check_length, check_values
from fluxlike.trees.functor import functor

__all__ = ["OneCycle", "Sin", "Triangle"]


@dataclass(frozen=True)
class _Wave(Formula):
    """A wave from `low` up to `high` in the middle of each period and back; a class says of which form."""

    low: float
    high: float
    period: int
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_length(self, "period", self.period)
        check_values(self, "low", "high", "decay")

    def _at(self, t: Tensor) -> Tensor:
        phase = torch.remainder(t, self.period) / self.period
        height = (self.high - self.low) * self.decay ** torch.floor(t / self.period)
        return self.low + height * self._rise(phase)

    def _rise(self, phase: Tensor) -> Tensor:
        """How high it is, from 0 to 1, at a phase from 0 to 1."""
        raise NotImplementedError


@functor
@dataclass(frozen=True)
class Triangle(_Wave):
    """A triangle wave from `low` up to `high` in the middle of each period (Smith 2017), and back.

    Args:
        low: the value at the ends of a period.
        high: the value in the middle of the first.
        period: steps a period.
        decay: the factor of the height from one period to the next; 0.5 is torch's triangular2.
            (default: 1)

    Raises:
        ValueError: `period` is not above 0.
        TypeError: an argument that is no number.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Triangle(0.0, 1.0, 4, decay=0.5)(t) for t in range(8)]
        [0.0, 0.5, 1.0, 0.5, 0.0, 0.25, 0.5, 0.25]
    """

    def _rise(self, phase: Tensor) -> Tensor:
        return 1 - (2 * phase - 1).abs()


@functor
@dataclass(frozen=True)
class Sin(_Wave):
    """A wave of half sines from `low` up to `high` in the middle of each period, and back.

    Args:
        low: the value at the ends of a period.
        high: the value in the middle of the first.
        period: steps a period.
        decay: the factor of the height from one period to the next. (default: 1)

    Raises:
        ValueError: `period` is not above 0.
        TypeError: an argument that is no number.

    Example:
        >>> import fluxlike as fl
        >>> [round(fl.schedules.Sin(0.0, 1.0, 4)(t), 4) for t in range(5)]
        [0.0, 0.7071, 1.0, 0.7071, 0.0]
    """

    def _rise(self, phase: Tensor) -> Tensor:
        return torch.sin(math.pi * phase).abs()


@functor
@dataclass(frozen=True)
class OneCycle(Formula):
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
        ValueError: `steps` is no whole number above 0, `pct` is outside (0, 1), or another shape.
        TypeError: an argument that is no number.

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
        check_length(self, "steps", self.steps)
        check_values(self, "high", "pct", *(n for n in ("start", "end") if getattr(self, n) is not None))
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
