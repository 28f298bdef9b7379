"""Rules around rules: the chain, and what schedules, guards or widens the rule inside."""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike.optimisers.batch import Batch, Moved, Performing, perform
from fluxlike.optimisers.counters import advanced, both, by_counter, counter
from fluxlike.optimisers.leaves import norms
from fluxlike.optimisers.rule import fields_of, hook, is_rule, replaced, rules_in
from fluxlike.placement.mesh import used
from fluxlike.trees.functor import functor

__all__ = ["ApplyIfFinite", "MixedPrecision", "OptimiserChain", "Scheduled", "Wrapper", "wrapped"]


class Wrapper(Performing):
    """A rule around others, which moves whole batches; base of the built-in ones."""

    def __repr__(self) -> str:
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in fields)})"

    def parts(self, state: Any, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        """The rules inside, each with its state and the parameter that it moves."""
        raise NotImplementedError


def wrapped(name: str, rule: Any) -> None:
    """Refuse anything but a rule as the one that a wrapper is around."""
    if not is_rule(rule):
        hint = f"{rule.__name__}()" if isinstance(rule, type) else "a rule, such as Adam()"
        raise TypeError(f"{name} is around a rule, found {rule!r}; write {hint}")


@functor
@dataclass(frozen=True, init=False)
class OptimiserChain(Wrapper):
    """Several rules in a row: each gets the step of the one before as its gradient.

    Chains run link by link over all leaves, so a link such as `ClipGlobalNorm` sees all of them. A
    chain inside a chain is laid out flat; an empty chain subtracts the gradient itself.

    Args:
        rules: the links, first to last.

    Raises:
        TypeError: something that is no rule.
        ValueError: a link before the last that keeps a copy of the parameters, such as `EMA`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.OptimiserChain(fl.WeightDecay(1e-4), fl.Momentum(0.1))
        OptimiserChain(WeightDecay(weight_decay=0.0001), Momentum(lr=0.1, momentum=0.9))
    """

    rules: tuple[Any, ...]

    def __init__(self, *rules: Any) -> None:
        flat: list[Any] = []
        for rule in rules:
            if not is_rule(rule):
                hint = "OptimiserChain(*rules)" if isinstance(rule, (list, tuple)) else "Adam(), not Adam"
                raise TypeError(f"OptimiserChain takes rules, found {rule!r}; write {hint}")
            flat.extend(rule.rules if isinstance(rule, OptimiserChain) else [rule])
        for rule in flat[:-1]:
            if any(hook(part, "last_alone") for part in rules_in(rule)):
                raise ValueError(
                    f"{rule!r} keeps a copy of the parameters that it moves, so no link can come after it; "
                    "write it last, or around the chain"
                )
        object.__setattr__(self, "rules", tuple(flat))

    def __repr__(self) -> str:
        return f"OptimiserChain({', '.join(map(repr, self.rules))})"

    def init(self, param: Tensor, /) -> tuple[Any, ...]:
        return tuple(rule.init(param) for rule in self.rules)

    def parts(self, state: tuple[Any, ...], param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(rule, s, param) for rule, s in zip(self.rules, state, strict=True)]

    def perform(self, batch: Batch, /) -> Moved:
        moved = Moved(batch.states, batch.grads, None, batch.passing)
        links = []
        for k, rule in enumerate(self.rules):
            states = [s[k] for s in batch.states]
            last = batch.last and k == len(self.rules) - 1
            link = batch.with_(states=states, grads=moved.stepped(batch), passing=moved.passing, last=last)
            moved = perform(rule, link)
            links.append(moved.states)
        after = [tuple(s) for s in zip(*links, strict=True)] if links else [()] * len(batch.states)
        return Moved(after, moved.steps, moved.params, moved.passing)


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


class MixedState(NamedTuple):
    """The master copy of one parameter, and the state of the rule inside, which moves it."""

    master: Any
    inner: Any


@functor
@dataclass(frozen=True, repr=False)
class MixedPrecision(Wrapper):
    """A master copy of each parameter in a wider dtype; the model gets its value, rounded.

    Steps too small for the model's dtype add up in the copy (Micikevicius et al. 2018,
    arXiv 1710.03740). The rule inside computes in the wider dtype.

    Args:
        dtype: the dtype of copies and moments, such as ``torch.float32``.
        rule: the rule.

    Raises:
        TypeError: `rule` is no rule.
        ValueError: `dtype` is not float32 or float64.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = torch.ones(1, dtype=torch.bfloat16)
        >>> state = fl.setup(fl.MixedPrecision(torch.float32, fl.Descent(1e-3)), model)
        >>> model, state = fl.update(state, model, torch.ones(1, dtype=torch.bfloat16))
        >>> model, state.state.master
        (tensor([1.], dtype=torch.bfloat16), tensor([0.9990]))
    """

    dtype: torch.dtype
    rule: Any

    last_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype={self.dtype!r}: write MixedPrecision(torch.float32, rule), or torch.float64"
            )
        wrapped("MixedPrecision", self.rule)

    def init(self, param: Tensor, /) -> MixedState:
        master = param.to(self.dtype, copy=True)
        return MixedState(master, self.rule.init(master))

    def parts(self, state: MixedState, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(self.rule, state.inner, state.master)]

    def belongs(self, state: MixedState, param: Tensor, /) -> bool:
        """Whether the master copy is that of a parameter: rounded, it is the same."""
        return (
            torch.equal(state.master.to(param.dtype), param)
            if not param.is_complex()
            else torch.equal(torch.view_as_complex(state.master).to(param.dtype), param)
        )

    def perform(self, batch: Batch, /) -> Moved:
        inner = batch.with_(
            states=[s.inner for s in batch.states],
            params=[s.master for s in batch.states],
            grads=[g.to(s.master.dtype) for g, s in zip(batch.grads, batch.states, strict=True)],
            last=True,
        )
        moved = perform(self.rule, inner)
        masters = moved.moved(inner)
        # A copy, so that model and state share no memory.
        params = [m.to(x.dtype, copy=True) for m, x in zip(masters, batch.params, strict=True)]
        states = [MixedState(*s) for s in zip(masters, moved.states, strict=True)]
        return Moved(states, None, params, moved.passing)


class FiniteState(NamedTuple):
    """The state of the rule inside, and how many steps were skipped, in a row and in all."""

    inner: Any
    in_a_row: Any
    skipped: Any


@functor
@dataclass(frozen=True, repr=False)
class ApplyIfFinite(Wrapper):
    """Skip a step where a gradient is NaN or infinite: parameters and state stay as they are.

    One such number holds back all parameters that share the rule. The state counts the skipped
    steps, in a row and in all; look at them, since a run that skips every step is lost.

    Args:
        rule: the rule.

    Raises:
        TypeError: `rule` is no rule.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(2)
        >>> state = fl.setup(fl.ApplyIfFinite(fl.Descent(0.1)), x)
        >>> x, state = fl.update(state, x, torch.tensor([1.0, float("inf")]))
        >>> x, state.state.skipped
        (tensor([1., 1.]), tensor(1))
    """

    rule: Any

    def __post_init__(self) -> None:
        wrapped("ApplyIfFinite", self.rule)

    def init(self, param: Tensor, /) -> FiniteState:
        return FiniteState(self.rule.init(param), counter(param), counter(param))

    def parts(self, state: FiniteState, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(self.rule, state.inner, param)]

    def perform(self, batch: Batch, /) -> Moved:
        device = batch.grads[0].device
        sizes = [n.detach().to(device) for n in norms(batch.grads, float("inf"))]
        finite = torch.stack([torch.isfinite(n) for n in sizes]).all()
        mesh = used.mesh()
        if mesh is not None:
            finite = mesh.whole(finite)
        there = {g.device: finite.to(g.device) for g in batch.grads}
        passing = both(batch.passing, [there[g.device] for g in batch.grads])
        moved = perform(self.rule, batch.with_(states=[s.inner for s in batch.states], passing=passing))
        one_more = {d: 1 - m.to(torch.int64) for d, m in there.items()}
        known: dict[Any, Tensor] = {}
        for k, (s, g) in enumerate(zip(batch.states, batch.grads, strict=True)):
            more, mask = one_more[g.device], batch.passing[k]
            for name, t in (("in_a_row", s.in_a_row), ("skipped", s.skipped)):
                key = (name, id(t), id(mask))
                if key not in known:
                    new = (t + 1) * more if name == "in_a_row" else t + more
                    known[key] = new if mask is None else torch.where(mask, new, t)
            moved.states[k] = FiniteState(
                moved.states[k],
                known["in_a_row", id(s.in_a_row), id(mask)],
                known["skipped", id(s.skipped), id(mask)],
            )
        return moved
