"""Schedules that fall from a first value, or stay at it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fluxlike.schedules.schedule import Formula, check_length, check_values
from fluxlike.trees.functor import functor

__all__ = ["Constant", "Cosine", "Exp", "Inv", "Poly", "Step"]


@functor
@dataclass(frozen=True)
class Constant(Formula):
    """The same value at every step.

    Args:
        value: the value.

    Raises:
        TypeError: `value` is no number.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Constant(0.1)(1000)
        0.1
    """

    value: float

    def __post_init__(self) -> None:
        check_values(self, "value")

    def _at(self, t: Tensor) -> Tensor:
        return torch.zeros_like(t) + self.value  # not full_like, which takes no tensor to differentiate by


@functor
@dataclass(frozen=True)
class Step(Formula):
    """``start·decay^k`` after k completed spans, as torch's StepLR and MultiStepLR.

    Args:
        start: the first value.
        decay: the factor after each span.
        sizes: the length of every span, or the lengths of the spans one by one; after the last of
            them the value stays.

    Raises:
        ValueError: a length below 1: the factor comes before the lengths, where torch has it after.
        TypeError: an argument that is no number.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Step(1.0, 0.5, 2)(t) for t in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
        >>> [fl.schedules.Step(1.0, 0.5, (1, 2))(t) for t in range(5)]
        [1.0, 0.5, 0.5, 0.25, 0.25]
    """

    start: float
    decay: float
    sizes: int | Sequence[int]

    def __post_init__(self) -> None:
        for n in self.sizes if isinstance(self.sizes, Sequence) else (self.sizes,):
            check_length(self, "sizes", n, least=1)
        check_values(self, "start", "decay")

    def _at(self, t: Tensor) -> Tensor:
        if isinstance(self.sizes, Sequence):
            ends = torch.cumsum(torch.tensor(self.sizes, dtype=t.dtype, device=t.device), 0)
            completed = (t.unsqueeze(-1) >= ends).sum(-1).to(t.dtype)
        else:
            completed = torch.floor(t / self.sizes)
        return self.start * self.decay**completed


@functor
@dataclass(frozen=True)
class Exp(Formula):
    """``start·decayᵗ``, as torch's ExponentialLR.

    Args:
        start: the first value.
        decay: the factor at each step.

    Raises:
        TypeError: an argument that is no number.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Exp(1.0, 0.5)(3)
        0.125
    """

    start: float
    decay: float

    def __post_init__(self) -> None:
        check_values(self, "start", "decay")

    def _at(self, t: Tensor) -> Tensor:
        return self.start * self.decay**t


@functor
@dataclass(frozen=True)
class Inv(Formula):
    """``start/(1 + t·decay)^power``.

    Args:
        start: the first value.
        decay: how fast it falls.
        power: the exponent.

    Raises:
        TypeError: an argument that is no number.

    Example:
        >>> import fluxlike as fl
        >>> fl.schedules.Inv(1.0, 0.5, 2)(2)
        0.25
    """

    start: float
    decay: float
    power: float

    def __post_init__(self) -> None:
        check_values(self, "start", "decay", "power")

    def _at(self, t: Tensor) -> Tensor:
        return self.start / (1 + t * self.decay) ** self.power


@functor
@dataclass(frozen=True)
class Poly(Formula):
    """``start·(1 - t/steps)^power``, then 0, as torch's PolynomialLR.

    Args:
        start: the first value.
        power: the exponent.
        steps: after how many steps it is 0.

    Raises:
        ValueError: `steps` is not above 0.
        TypeError: an argument that is no number.

    Example:
        >>> import fluxlike as fl
        >>> [fl.schedules.Poly(1.0, 2, 2)(t) for t in range(4)]
        [1.0, 0.25, 0.0, 0.0]
    """

    start: float
    power: float
    steps: int

    def __post_init__(self) -> None:
        check_length(self, "steps", self.steps)
        check_values(self, "start", "power")

    def _at(self, t: Tensor) -> Tensor:
        return self.start * (1 - t / self.steps).clamp(min=0) ** self.power


@functor
@dataclass(frozen=True)
class Cosine(Formula):
    """``low + (high - low)·(1 + cos(π·t/steps))/2``, then low (Loshchilov & Hutter 2017, SGDR).

    Args:
        high: the first value.
        low: the last value.
        steps: after how many steps it is reached.
        restart: whether to begin again from `high` each time, instead of staying. (default: False)

    Raises:
        ValueError: `steps` is not above 0.
        TypeError: an argument that is no number.

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
        check_length(self, "steps", self.steps)
        check_values(self, "high", "low")

    def _at(self, t: Tensor) -> Tensor:
        t = torch.remainder(t, self.steps) if self.restart else t.clamp(max=self.steps)
        return self.low + (self.high - self.low) * (1 + torch.cos(math.pi * t / self.steps)) / 2
