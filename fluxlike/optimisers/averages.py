"""Rules that keep an average of the parameters, and the model that is made of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.batch import Batch, Moved, perform
from fluxlike.optimisers.checks import positive, whole, within
from fluxlike.optimisers.counters import counter
from fluxlike.optimisers.formula import Formula
from fluxlike.optimisers.leaves import Leaves, where
from fluxlike.optimisers.on_ranks import divided_as, require_together
from fluxlike.optimisers.rule import Hyper, hook
from fluxlike.optimisers.slots import matched
from fluxlike.optimisers.state import ParamState, computed
from fluxlike.optimisers.wrappers.wrapper import Wrapper, wrapped
from fluxlike.placement.mesh import used
from fluxlike.trees.functor import functor
from fluxlike.trees.structure import structure_of
from fluxlike.trees.values import value_of

__all__ = ["EMA", "Lookahead", "averaged"]


class AverageState(NamedTuple):
    """The state of the rule inside, and the average of one parameter."""

    inner: Any
    average: Any


@functor
@dataclass(frozen=True, repr=False)
class EMA(Wrapper):
    """A rule, and the exponential moving average of the parameters that it moves.

    ``average ← decay·average + (1-decay)·x`` after each step, from the first parameters on;
    `averaged` gives the model of it.

    Args:
        rule: the rule.
        decay: how much of the average is kept. (default: 0.999)

    Raises:
        TypeError: `rule` is no rule, or `decay` is neither a number nor a 0-d tensor.
        ValueError: a `decay` outside [0, 1).

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.zeros(1)
        >>> state = fl.setup(fl.EMA(fl.Descent(1.0), decay=0.9), x)
        >>> x, state = fl.update(state, x, torch.tensor([-1.0]))
        >>> x, fl.averaged(state, x)
        (tensor([1.]), tensor([0.1000]))
    """

    rule: Any
    decay: Hyper = 0.999

    last_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrapped("EMA", self.rule)
        within("decay", self.decay)

    def init(self, param: Tensor, /) -> AverageState:
        return AverageState(self.rule.init(param), param.clone())

    def parts(self, state: AverageState, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(self.rule, state.inner, param)]

    def average(self, state: AverageState, param: Tensor, /) -> Tensor:
        """The average of one parameter."""
        return state.average

    def perform(self, batch: Batch, /) -> Moved:
        moved = perform(self.rule, batch.with_(states=[s.inner for s in batch.states]))
        x = moved.moved(batch) if batch.last else _less(batch.params, moved.stepped(batch))
        blend = batch.with_(
            states=[s.average for s in batch.states], grads=x, passing=moved.passing, last=False
        )
        averages = _Blend(self.decay).perform(blend).states
        moved.states = [AverageState(*s) for s in zip(moved.states, averages, strict=True)]
        return moved


def _less(params: list[Tensor], steps: list[Tensor]) -> list[Tensor]:
    return [x - d for x, d in zip(params, steps, strict=True)]


@functor
@dataclass(frozen=True)
class _Blend(Formula):
    """The average, which is the state, moved towards what stands in the place of the gradient."""

    decay: Hyper

    def formula(self, average: Leaves, x: Leaves, new: Leaves, /) -> tuple[Leaves, Leaves]:
        return average.lerp(new, 1 - self.decay), new


class LookaheadState(NamedTuple):
    """The state of the rule inside, the slow weights of one parameter, and the steps."""

    inner: Any
    slow: Any
    step: Any


@functor
@dataclass(frozen=True, repr=False)
class Lookahead(Wrapper):
    """Slow weights that follow fast ones every k steps (Zhang et al. 2019, arXiv 1907.08610).

    The rule inside moves the fast weights x; every k-th step ``slow ← slow + alpha·(x - slow)`` and
    ``x ← slow``. `averaged` gives the model of the slow weights.

    Args:
        rule: the rule.
        k: the number of fast steps. (default: 5)
        alpha: how far the slow weights go. (default: 0.5)

    Raises:
        TypeError: `rule` is no rule, or `alpha` is neither a number nor a 0-d tensor.
        ValueError: `k` is no whole number of at least 1, or a negative `alpha`.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.zeros(1)
        >>> state = fl.setup(fl.Lookahead(fl.Descent(1.0), k=2), x)
        >>> for _ in range(2):
        ...     x, state = fl.update(state, x, torch.tensor([-1.0]))
        >>> x
        tensor([1.])
    """

    rule: Any
    k: int = 5
    alpha: Hyper = 0.5

    last_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        wrapped("Lookahead", self.rule)
        whole("k", self.k, least=1)
        positive("alpha", self.alpha)

    def init(self, param: Tensor, /) -> LookaheadState:
        return LookaheadState(self.rule.init(param), param.clone(), counter(param))

    def parts(self, state: LookaheadState, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(self.rule, state.inner, param)]

    def average(self, state: LookaheadState, param: Tensor, /) -> Tensor:
        """The slow weights of one parameter."""
        return state.slow

    def perform(self, batch: Batch, /) -> Moved:
        moved = perform(self.rule, batch.with_(states=[s.inner for s in batch.states]))
        x = moved.moved(batch) if batch.last else _less(batch.params, moved.stepped(batch))
        follow = batch.with_(
            states=[_Slow(s.slow, s.step) for s in batch.states], grads=x, passing=moved.passing, last=False
        )
        followed = _Follow(self.k, self.alpha).perform(follow)
        assert followed.steps is not None
        held = zip(x, followed.steps, moved.passing, strict=True)
        params = [new if mask is None else torch.where(mask, new, old) for old, new, mask in held]
        states = [
            LookaheadState(s, slow.slow, slow.step)
            for s, slow in zip(moved.states, followed.states, strict=True)
        ]
        return Moved(states, None, params, moved.passing)


class _Slow(NamedTuple):
    slow: Any
    step: Any


@functor
@dataclass(frozen=True)
class _Follow(Formula):
    """The slow weights, moved every k-th step; what steps is what stands for the gradient, moved there."""

    k: int
    alpha: Hyper

    shared: ClassVar[tuple[str, ...]] = ("step",)

    def formula(self, s: _Slow, x: Leaves, fast: Leaves, /) -> tuple[_Slow, Leaves]:
        meets = s.step % self.k == 0
        slow = where(meets, s.slow.lerp(fast, self.alpha), s.slow)
        return _Slow(slow, s.step), where(meets, slow.each(torch.clone), fast)


def averaged(state: Any, model: Any, /) -> Any:
    """The model of the averages that the rules keep: `EMA`, `Lookahead` or `ScheduleFree`.

    Of rules around rules, the outermost that keeps an average gives it. Buffers, and parameters
    whose rule keeps no average, are those of the model; the statistics of a BatchNorm belong to the
    weights that they were taken under, so take them anew before evaluation.

    Args:
        state: the state of the optimiser.
        model: the model.

    Returns:
        A model of the same structure and ties.

    Raises:
        ValueError: no rule of the state keeps an average, or state and model differ.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.tensor([1.0])
        >>> state = fl.setup(fl.EMA(fl.Adam()), x)
        >>> x, state = fl.update(state, x, torch.tensor([0.5]))
        >>> fl.averaged(state, x)
        tensor([1.0000])
    """
    entries, leaves, treedef = matched(state, model)
    made: dict[int, Tensor] = {}
    result = list(leaves)
    for i, (entry, x) in enumerate(zip(entries, leaves, strict=True)):
        if type(entry) is not ParamState or not isinstance(x, Tensor):
            continue
        if id(x) not in made:
            wide = computed(value_of(x))
            average = next(_averages(entry.rule, entry.state, wide), None)
            if average is None:
                continue
            if average.shape != wide.shape:
                path = structure_of(treedef).paths[i]
                raise ValueError(
                    f"the average of {path} is of shape {tuple(average.shape)}, the parameter of "
                    f"{tuple(wide.shape)}; after surgery, call setup(rule, model, carry=state)"
                )
            if used.mesh() is not None:
                require_together("average", average, structure_of(treedef).paths[i], wide)
                average = divided_as(wide, average)
            if x.is_complex():
                average = torch.view_as_complex(average)
            made[id(x)] = average.to(x.dtype, copy=True)  # its own memory: the state may be donated
        result[i] = made[id(x)]
    if not made:
        rules = sorted({type(e.rule).__name__ for e in entries if type(e) is ParamState})
        raise ValueError(
            f"no rule of the state keeps an average ({', '.join(rules) or 'there is none'}); wrap it, for "
            "example setup(EMA(Adam()), model)"
        )
    return treedef.unflatten(result)


def _averages(rule: Any, state: Any, param: Tensor) -> Iterator[Tensor]:
    """The averages that a rule and those inside it keep of a parameter, from the outside in."""
    average = hook(rule, "average")
    if average is not None:
        yield average(state, param)
    parts = hook(rule, "parts")
    for part in parts(state, param) if parts is not None else ():
        yield from _averages(*part)
