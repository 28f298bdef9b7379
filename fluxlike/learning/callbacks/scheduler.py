"""`Scheduler`: hyperparameters that follow the step, everywhere or at one place of the model."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from fluxlike.learning.callback import Callback, innermost
from fluxlike.learning.callbacks.to_device import ToDevice
from fluxlike.optimisers.adjust import Adjuster
from fluxlike.optimisers.rule import rules_in
from fluxlike.optimisers.state import is_param_state
from fluxlike.trees.functor import spec_of
from fluxlike.trees.places import Where
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Scheduler"]


@dataclass(frozen=True, init=False, repr=False)
class Scheduler(Callback):
    """Set hyperparameters of the optimiser before every step of training.

    Several schedulers may write different hyperparameters, or one at different places.

    Args:
        where: the place of the state, as in `adjust`. (default: everywhere)
        start: the step of training at which the schedules are at 0; before it, nothing is set. (default:
            the step at which the scheduler runs first, which is remembered)
        schedules: by the name of a hyperparameter, a schedule of `fluxlike.schedules` or another
            function of the step, which counts from 0; for a pair such as betas a pair of them, or of numbers.

    The latest values are in ``run.hyperparameters`` for other callbacks, as ``"lr"``, at one place as
    ``"lr.layers[0]"``, and in ``learner.memory["Scheduler"]["values"]``.

    Raises:
        TypeError: no schedule, or one that is no function.
        ValueError: in the fit, a hyperparameter that no rule there has, a value that the rule refuses, or
            another scheduler that sets the same one at the same parameter.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.scheduler import Scheduler
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> learner = fl.Learner(
        ...     fl.Dense(2, 1), data, fl.Momentum(), fl.losses.mse,
        ...     callbacks=[Scheduler(lr=fl.schedules.Exp(0.1, 0.5), momentum=lambda step: 0.8)],
        ...     progress=False,
        ... )
        >>> learner = fl.fit(learner, 3)
        >>> learner.state.weight.rule
        Momentum(lr=0.025, momentum=0.8)
    """

    where: Where | tuple[Where, ...] | None
    start: int | None
    schedules: tuple[tuple[str, Any], ...]
    after = (ToDevice,)

    def __init__(
        self, where: Where | tuple[Where, ...] | None = None, start: int | None = None, **schedules: Any
    ) -> None:
        if not schedules:
            raise TypeError(
                "Scheduler got no schedule: write Scheduler(lr=fluxlike.schedules.Cosine(0.1, 0.0, 1000))"
            )
        for name, schedule in schedules.items():
            _check(name, schedule)
        if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
            raise ValueError(f"Scheduler has start={start!r}; write a step of training, from 0")
        own = object.__setattr__
        own(self, "where", where)
        own(self, "start", start)
        own(self, "schedules", tuple(schedules.items()))
        place = "" if where is None else f".{_named(where)}"
        own(self, "writes", tuple(f"state.{name}{place}" for name in schedules))

    def __repr__(self) -> str:
        settings = [
            (name, value) for name in ("where", "start") if (value := getattr(self, name)) is not None
        ]
        return f"Scheduler({', '.join(f'{name}={value!r}' for name, value in (*settings, *self.schedules))})"

    def init(self) -> dict[str, Any]:
        return {"start": self.start, "values": {}}

    def values(self, step: int, /) -> dict[str, Any]:
        """The values at a step that counts from the start: numbers, or tuples of numbers, by name."""
        return {name: _value(schedule, step) for name, schedule in self.schedules}

    def step_begin(self, run: Any) -> None:
        if not run.trains:
            return
        memory = run.memory
        if memory["start"] is None:
            memory["start"] = run.step
        step = run.step - memory["start"]
        if step < 0:
            return
        adjuster = run.live.get("adjuster")
        if adjuster is None:
            adjuster = run.live["adjuster"] = Adjuster(self.where)
            self._refuse_overlap(run)
            run.live["floats"], run.live["place"] = _floats(run.state), _path(self.where, run.state)
        floats = run.live["floats"]
        values = {n: _as_floats(v) if n in floats else v for n, v in self.values(step).items()}
        run.state = adjuster(run.state, values)
        memory["values"] = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        for name, value in values.items():
            run.hyperparameters[name + run.live["place"]] = value

    def _refuse_overlap(self, run: Any) -> None:
        """Report another scheduler that sets the same hyperparameter of the same parameter."""
        mine = None
        for other in map(innermost, run.learner.callbacks):
            if other is self or not isinstance(other, Scheduler):
                continue
            both = sorted(dict(self.schedules).keys() & dict(other.schedules).keys())
            if not both:
                continue
            mine = set(_places(self.where, run.state)) if mine is None else mine
            if mine.intersection(_places(other.where, run.state)):
                raise ValueError(
                    f"{self!r} and {other!r} both set {both[0]!r} of the same parameters; give them places "
                    "that lie apart"
                )


def _named(where: Any) -> str:
    """A name for a place, by which those of the same one are told."""
    if callable(where):
        return f"{getattr(where, '__qualname__', type(where).__name__)} (at {id(where):#x})"
    return str(where)


def _check(name: str, schedule: Any) -> None:
    several = isinstance(schedule, (tuple, list)) and len(schedule) > 0
    for part in schedule if several else (schedule,):
        number = several and isinstance(part, (int, float))
        if isinstance(part, type) or not (callable(part) or number):
            write = (
                f"fluxlike.schedules.Constant({part!r})"
                if isinstance(part, (int, float))
                else "lambda step: 0.1"
            )
            raise TypeError(
                f"Scheduler({name}={schedule!r}): {part!r} is no function of the step; write {write}"
            )


def _value(schedule: Any, step: int) -> Any:
    if isinstance(schedule, (tuple, list)):
        return tuple(_value(part, step) for part in schedule)
    value = schedule(step) if callable(schedule) else schedule
    if isinstance(value, (tuple, list)):
        return tuple(map(_number, value))
    return _number(value)


def _number(value: Any) -> Any:
    """A Python number for a 0-d tensor or array: what rules have kernels for, and no reason to trace anew."""
    item: Callable[[], Any] | None = getattr(value, "item", None)
    return value.item() if item is not None and getattr(value, "ndim", 0) == 0 else value


def _as_floats(value: Any) -> Any:
    """Floats for whole numbers, which `jit` would take for constants."""
    if isinstance(value, tuple):
        return tuple(map(_as_floats, value))
    return float(value) if type(value) is int else value


def _floats(state: Any) -> set[str]:
    """The hyperparameters that are floats, by what the classes of the rules declare."""
    rules = {
        id(entry.rule): entry.rule for entry in flatten(state, is_param_state)[0] if is_param_state(entry)
    }
    found = set()
    for rule in rules.values():
        for part in rules_in(rule):
            spec = spec_of(type(part))
            found |= {name for name in vars(part) if spec is not None and spec.has_scalars(name)}
    return found


def _places(where: Any, state: Any) -> list[int]:
    entries, treedef = flatten(state, is_param_state)
    return Adjuster(where).chosen(state, entries, treedef)


def _path(where: Any, state: Any) -> str:
    """The path to all that is at a place."""
    if where is None:
        return ""
    known = structure_of(flatten(state, is_param_state)[1]).paths
    steps = zip(*(re.findall(r"\.\w+|\[[^]]*\]", known[i]) for i in _places(where, state)), strict=False)
    return "".join(step for step, *others in takewhile(lambda found: len(set(found)) == 1, steps))
