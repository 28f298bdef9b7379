"""A rule whose hyperparameters are functions of the step."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike.optimisers.batch import Batch, Moved, perform
from fluxlike.optimisers.counters import advanced, by_counter, counter
from fluxlike.optimisers.rule import fields_of, replaced
from fluxlike.optimisers.wrappers.wrapper import Wrapper, wrapped
from fluxlike.trees.functor import functor

__all__ = ["Scheduled"]


class ScheduledState(NamedTuple):
    """The state of the rule inside, and how many steps were taken."""

    inner: Any
    step: Any


@functor
@dataclass(frozen=True, init=False, repr=False)
class Scheduled(Wrapper):
    """A rule whose hyperparameters follow schedules.

    The first step has the schedule's value at 0. Under `AccumGrad` only the steps that move count.

    Args:
        rule: the rule. In an `OptimiserChain`, every link that has the name is scheduled.
        schedules: by the name of a hyperparameter, a schedule of `fluxlike.schedules`, a number, or
            another function of the step; for a pair, such as betas, a pair of them.

    Raises:
        TypeError: `rule` is no rule, no schedule is given, or one is no schedule.
        ValueError: the rule has no hyperparameter of the name, or refuses the value at step 0; from
            `update`, at a later one.

    Example:
        >>> import torch, fluxlike as fl
        >>> rule = fl.Scheduled(fl.Descent(), lr=fl.schedules.Exp(0.1, 0.5))
        >>> x, state = torch.zeros(1), fl.setup(rule, torch.zeros(1))
        >>> for _ in range(3):
        ...     x, state = fl.update(state, x, torch.ones(1))
        >>> x  # -(0.1 + 0.05 + 0.025)
        tensor([-0.1750])
    """

    rule: Any
    schedules: tuple[tuple[str, Any], ...]

    def __init__(self, rule: Any, /, **schedules: Any) -> None:
        wrapped("Scheduled", rule)
        if not schedules:
            raise TypeError(
                "Scheduled got no schedule: write Scheduled(rule, lr=fluxlike.schedules.Cosine(…))"
            )
        names = fields_of(rule)
        for name, schedule in schedules.items():
            if name not in names:
                raise ValueError(
                    f"{rule!r} has no hyperparameter {name!r}; it has {', '.join(sorted(names))}"
                )
            _check_schedule(name, schedule)
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "schedules", tuple(schedules.items()))
        self.at(0)  # refuses what the rule would refuse at its first step

    def __repr__(self) -> str:
        return f"Scheduled({self.rule!r}, {', '.join(f'{n}={s!r}' for n, s in self.schedules)})"

    def adjusted(self, changes: dict[str, Any], /) -> tuple[Scheduled, dict[str, Any]]:
        """The same with other schedules, and the changes that are left for the rule inside."""
        own = dict(self.schedules)
        for name in own.keys() & changes.keys():
            _check_schedule(name, changes[name])
            own[name] = changes[name]
        new = copy.copy(self)
        object.__setattr__(new, "schedules", tuple(own.items()))
        return new, {name: v for name, v in changes.items() if name not in own}

    def init(self, param: Tensor, /) -> ScheduledState:
        return ScheduledState(self.at(0).init(param), counter(param))

    def at(self, step: Any, /) -> Any:
        """The rule inside with the values at a step."""
        return replaced(self.rule, {name: _value(s, step) for name, s in self.schedules})

    def _values(self, count: Tensor) -> dict[str, Any]:
        """The values at a step; numbers where the count can be read."""
        step = count.item() if tracing.readable(count) else count.to(torch.float64)
        return {name: _value(s, step) for name, s in self.schedules}

    def parts(self, state: ScheduledState, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(self.rule, state.inner, param)]

    def perform(self, batch: Batch, /) -> Moved:
        inner = batch.with_(states=[s.inner for s in batch.states])
        groups = by_counter([s.step for s in batch.states])
        if len(groups) == 1 and batch.scheduled is None:
            moved = perform(replaced(self.rule, self._values(batch.states[0].step)), inner)
        else:  # links inside see all leaves still, and only what is scheduled differs
            values: list[Any] = [None] * len(batch.states)
            for members in groups:
                now = self._values(batch.states[members[0]].step)
                for k in members:
                    outer = batch.scheduled[k] if batch.scheduled is not None else {}
                    values[k] = {**now, **outer} if outer else now
            moved = perform(self.rule, inner.with_(scheduled=values))
        counts = advanced([s.step for s in batch.states], moved.passing)
        moved.states = [ScheduledState(*s) for s in zip(moved.states, counts, strict=True)]
        return moved


def _value(schedule: Any, step: Any) -> Any:
    if isinstance(schedule, (tuple, list)):
        return tuple(_value(s, step) for s in schedule)
    return schedule(step) if callable(schedule) else schedule


def _check_schedule(name: str, schedule: Any) -> None:
    for s in schedule if isinstance(schedule, (tuple, list)) else (schedule,):
        if isinstance(s, type) or not (callable(s) or isinstance(s, (int, float, Tensor))):
            raise TypeError(
                f"{name}={s!r} is no schedule; write one such as fluxlike.schedules.Cosine(0.1, 0.0, 1000), "
                "or a number"
            )
