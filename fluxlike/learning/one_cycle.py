"""`fit_one_cycle`: a fit whose learning rate rises once and falls once."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.fit import fitted
from fluxlike.learning.learner import Learner
from fluxlike.learning.phase import TrainingPhase
from fluxlike.optimisers.rule import fields_of, is_rule, rules_in
from fluxlike.optimisers.state import ParamState, is_param_state
from fluxlike.schedules import OneCycle
from fluxlike.trees.places import Where
from fluxlike.trees.structure import flatten

__all__ = ["Shape", "cycle_of", "cycled", "fit_one_cycle", "steps_of"]

Shape = Literal["cosine", "sine"]
Places = Where | tuple[Where, ...] | None


def fit_one_cycle(
    learner: Learner,
    epochs: int,
    lr: float,
    *,
    shape: Shape = "cosine",
    pct: float = 0.25,
    div: float = 25.0,
    final: float = 1e5,
    momentum: tuple[float, float] | None = None,
    steps: int | None = None,
    resume: bool | str | os.PathLike[str] = False,
) -> Learner:
    """`fit` with a learning rate that rises to `lr` and falls to almost nothing, once over all epochs.

    Afterwards the learner has its own callbacks and hyperparameters again.

    Args:
        learner: the learner.
        epochs: as in `fit`.
        lr: the largest rate, of all parameters.
        shape: ``"cosine"``, the values of torch's OneCycleLR, or ``"sine"``, those of FluxTraining.jl.
            (default: ``"cosine"``)
        pct: the share of the steps that rises. (default: 0.25)
        div: the first rate is lr/div. (default: 25)
        final: the last rate is lr/final. (default: 1e5)
        momentum: the momentum, or the first of the betas, at both ends of the cycle and at its top, such as
            (0.95, 0.85). (default: it stays as it is)
        steps: batches an epoch, where the data has no length. (default: its length)
        resume: as in `fit`: a run that was killed goes on in its cycle.

    Returns:
        The learner after the last epoch, or where it was stopped.

    Raises:
        TypeError: data without a length, and no `steps`.
        ValueError: no epochs, a number out of range, a rule without a rate or a momentum, or a scheduler of
            the learner that sets the same.
        Exception: as `fit`.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.one_cycle import fit_one_cycle
        >>> x = torch.linspace(-1, 1, 64).unsqueeze(1)
        >>> data = fl.DataLoader((x, 3 * x), batch_size=16)
        >>> learner = fl.Learner(fl.Dense(1, 1), data, fl.Adam(), fl.losses.mse, progress=False)
        >>> learner = fit_one_cycle(learner, 20, 0.2)
        >>> learner.history["training", "loss"][-1] < 0.1
        True

    Source: Smith & Topin 2018, Super-Convergence, arXiv 1708.07120.
    """
    total = steps_of(learner, epochs, steps)
    schedules: dict[str, Any] = {"lr": cycle_of(total, lr, shape=shape, pct=pct, div=div, final=final)}
    if momentum is not None:
        schedules |= _momentum(learner, total, momentum, shape, pct)
    return cycled(learner, epochs, [(None, schedules)], resume)


_CYCLE = "fit_one_cycle"
_ADVICE = (
    "fit(learner, {left}) at the learner's own rates. A cycle itself goes on from its checkpoints: give the "
    "same call again with resume=True, and the learner a Checkpointer"
)


class _Cycle(Scheduler):
    """The schedules of a cycle, up to an epoch: by its name a checkpoint tells one cycle from another."""

    goal: int

    def __init__(self, goal: int, where: Places, **schedules: Any) -> None:
        super().__init__(where, **schedules)
        object.__setattr__(self, "goal", goal)

    @property
    def name(self) -> str:
        return f"{_CYCLE} to epoch {self.goal}"


def cycle_of(
    total: int,
    high: float,
    *,
    shape: Shape = "cosine",
    pct: float = 0.25,
    div: float = 25.0,
    final: float = 1e5,
) -> OneCycle:
    """The cycle of a rate, or of a momentum, over a number of steps."""
    for name, value in (("the rate", high), ("div", div), ("final", final)):
        if not value > 0:
            raise ValueError(f"{name} is {value!r}; write a number above 0")
    low, end = high / div, high / final
    # torch counts the top and the end as steps of the cycle, FluxTraining the steps after them.
    if shape == "cosine" and pct * total > 1:
        return OneCycle(total - 1, high, low, end, (pct * total - 1) / (total - 1), shape)
    return OneCycle(total, high, low, end, pct, shape)


def steps_of(learner: Learner, epochs: int, steps: int | None, /) -> int:
    """How many batches of training a fit has.

    Raises:
        ValueError: none.
        TypeError: the data has no length.
    """
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"a cycle over {epochs!r} epochs: write how many, from 1")
    done = taken = 0
    for number, phase in enumerate(learner.phases):
        if isinstance(phase, TrainingPhase):
            length = _length(learner.data[phase.name]) if steps is None else steps
            done += length
            taken += length if number < learner.phase else learner.batch if number == learner.phase else 0
    total = epochs * done - taken
    if total < 1:
        raise ValueError(f"a cycle over {total} steps: there is no training, or no data for it")
    return total


def _length(data: Any) -> int:
    try:
        return len(data)
    except TypeError as error:
        raise TypeError(
            f"a cycle needs the number of its steps, and the data has no length ({error}); write steps=, the "
            "batches of an epoch"
        ) from error


def cycled(
    learner: Learner,
    epochs: int,
    cycles: Sequence[tuple[Places, Mapping[str, Any]]],
    resume: bool | str | os.PathLike[str] = False,
) -> Learner:
    """`fit` with the schedules of a cycle at places of the state, which leaves nothing behind of them."""
    goal = learner.epoch + epochs
    callbacks = [_Cycle(goal, where, **schedules) for where, schedules in cycles]
    names = {name for _, schedules in cycles for name in schedules}
    going = learner.replace(
        callbacks=(*learner.callbacks, *callbacks), memory=_without_cycles(learner.memory)
    )
    try:
        return _own_again(fitted(going, epochs, resume=resume, advice=_ADVICE), learner, names)
    except BaseException as error:
        stands = getattr(error, "learner", None)
        if isinstance(stands, Learner):
            error.learner = _own_again(stands, learner, names)  # type: ignore[attr-defined]
        raise


def _without_cycles(memory: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in memory.items() if not name.startswith(f"{_CYCLE} to epoch ")}


def _own_again(fitted: Learner, learner: Learner, names: set[str]) -> Learner:
    """A learner with the callbacks of another, and the hyperparameters of these names."""
    entries, treedef = flatten(fitted.state, is_param_state)
    made: dict[tuple[int, int], Any] = {}  # rules that are shared stay so
    kept: dict[int, ParamState] = {}  # and so do entries of tied places
    for i, (entry, own) in enumerate(zip(entries, flatten(learner.state, is_param_state)[0], strict=True)):
        if not is_param_state(entry):
            continue
        if id(entry) not in kept:
            key = id(entry.rule), id(own.rule)
            if key not in made:
                made[key] = _with_fields(entry.rule, own.rule, names)
            kept[id(entry)] = ParamState(made[key], entry.state, entry.frozen)
        entries[i] = kept[id(entry)]
    return fitted.replace(
        state=treedef.unflatten(entries),
        callbacks=learner.callbacks,
        memory=_without_cycles(fitted.memory),
    )


def _with_fields(rule: Any, own: Any, names: set[str]) -> Any:
    """A rule with the fields of these names of another one of its kind, also in the rules inside it."""
    if not dataclasses.is_dataclass(rule):
        return rule
    new = copy.copy(rule)
    for field in dataclasses.fields(rule):
        value, other = getattr(rule, field.name), getattr(own, field.name)
        if is_rule(value):
            value = _with_fields(value, other, names)
        elif isinstance(value, tuple) and value and all(map(is_rule, value)):
            value = tuple(_with_fields(a, b, names) for a, b in zip(value, other, strict=True))
        elif field.name in names or field.name == "schedules":
            value = other
        object.__setattr__(new, field.name, value)
    return new


def _momentum(
    learner: Learner, total: int, momentum: tuple[float, float], shape: Shape, pct: float
) -> dict[str, Any]:
    """The schedule of the momentum: it falls where the rate rises."""
    high, low = momentum
    cycle = dataclasses.replace(cycle_of(total, low, shape=shape, pct=pct), start=high, end=high)
    rules = [e.rule for e in flatten(learner.state, is_param_state)[0] if is_param_state(e)]
    found: dict[str, Any] = {}
    if any("momentum" in fields_of(rule) for rule in rules):
        found["momentum"] = cycle
    pairs = {part.betas[1:] for rule in rules for part in rules_in(rule) if hasattr(part, "betas")}
    if len(pairs) > 1:
        raise ValueError(
            f"momentum= sets the first of the betas, and the rules differ in the second: "
            f"{', '.join(str(rest[0]) for rest in pairs)}; write a Scheduler for each place"
        )
    if pairs:
        found["betas"] = (cycle, *pairs.pop())
    if not found:
        kinds = ", ".join(sorted({type(rule).__name__ for rule in rules}))
        raise ValueError(f"momentum= sets the momentum or the betas, and {kinds} has neither; leave it out")
    return found
