"""What a schedule is, and what those written as formulas share."""

from __future__ import annotations

import dataclasses
from numbers import Real
from typing import Any, Protocol

import torch
from torch import Tensor

from fluxlike.trees.show import value_text

__all__ = ["Formula", "Schedule", "check_length", "check_schedule", "check_values", "value_at"]


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
        return value if _holds_tensor(self) else value.item()

    def _at(self, t: Tensor) -> Tensor:
        raise NotImplementedError

    @classmethod
    def _written(cls) -> str:
        """How a call of the class is written, for errors: the arguments that it needs, in their order."""
        needed = (f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING)  # type: ignore[arg-type]
        return f"{cls.__name__}({', '.join(needed)})"


def _holds_tensor(x: Any) -> bool:
    """Whether a schedule, or one inside it, has a tensor for a value, which is not to be read."""
    if isinstance(x, tuple):
        return any(map(_holds_tensor, x))
    return isinstance(x, Tensor) or (isinstance(x, Formula) and any(map(_holds_tensor, vars(x).values())))


def value_at(schedule: Schedule, t: Tensor) -> Tensor:
    """Any schedule, also a user's function of numbers, at a tensor of steps."""
    value = schedule(t)
    return value if isinstance(value, Tensor) else torch.full_like(t, value)


def check_length(schedule: Formula, name: str, n: Any, *, least: float = 0.0) -> None:
    """Refuse what is no number of steps above 0, or of at least so many."""
    if isinstance(n, bool) or not isinstance(n, Real):
        raise TypeError(f"{name} is {value_text(n)}; write a number of steps, as in {schedule._written()}")
    if not float(n) > 0 or float(n) < least:
        wanted = f"of at least {least:g}" if least else "above 0"
        raise ValueError(f"{name}={n!r}: write a number of steps {wanted}, as in {schedule._written()}")


def check_values(schedule: Formula, *names: str) -> None:
    """Refuse a value that is neither a number nor a tensor."""
    for name in names:
        value = getattr(schedule, name)
        if isinstance(value, bool) or not isinstance(value, (Real, Tensor)):
            raise TypeError(f"{name} is {value_text(value)}; write a number, as in {schedule._written()}")


def check_schedule(schedule: Formula, inner: Any) -> None:
    """Refuse as a schedule inside another what can't be called with a step."""
    if isinstance(inner, (Real, Tensor)):
        argument = "…" if isinstance(inner, Tensor) else inner
        raise TypeError(
            f"the schedule is the number {value_text(inner)}; for one that stays there, write "
            f"Constant({argument}), as in {schedule._written()}"
        )
    if isinstance(inner, type):
        raise TypeError(f"the schedule is the class {inner.__name__}; write an object, {inner.__name__}(…)")
    if not callable(inner):
        raise TypeError(
            f"the schedule is {value_text(inner)}; write one such as Exp(0.1, 0.99), or a function of the "
            f"step, as in {schedule._written()}"
        )
