"""What a rule is: two functions that say how one parameter moves."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fluxlike.trees.functor import functor, spec_of

__all__ = [
    "Hyper", "LeafError", "ListRule", "Rule", "as_functor", "count", "forms", "is_rule", "positive",
    "two_rates", "within",
]  # fmt: skip

Hyper = float | Tensor  # a hyperparameter: a number or a 0-d tensor


@runtime_checkable
class Rule(Protocol):
    """What every optimiser rule has; a frozen dataclass with these two methods is one.

    A rule that looks at all its leaves at once also defines
    ``apply_all(states, params, grads) -> (states, steps)`` over lists.
    """

    def init(self, param: Tensor, /) -> Any:
        """The state for one parameter: any tree of tensors, or None."""

    def apply(self, state: Any, param: Tensor, grad: Tensor, /) -> tuple[Any, Tensor]:
        """The next state, and the step: what is subtracted from the parameter."""


class ListRule:
    """A rule whose formula is written over lists of leaves; one leaf is a list of one."""

    def init(self, param: Tensor, /) -> Any:
        """No state, unless a rule says otherwise."""
        return None

    def apply(self, state: Any, param: Tensor, grad: Tensor, /) -> tuple[Any, Tensor]:
        """The formula for one leaf."""
        states, steps = self.apply_all([state], [param], [grad])
        return states[0], steps[0]

    def apply_all(
        self, states: Sequence[Any], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """The formula for all leaves that share the rule."""
        raise NotImplementedError

    def move_all(
        self, states: Sequence[Any], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[Any], Sequence[Tensor]] | None:
        """States and parameters after the step, by a kernel that does both; None without one.

        It is asked where nothing is differentiated, and the rule is the last link.
        """
        return None


class LeafError(ValueError):
    """An error about one leaf of a list; `update` adds its path."""

    def __init__(self, leaf: int, message: str) -> None:
        super().__init__(message)
        self.leaf = leaf


def as_functor(rule: Rule, /) -> None:
    """Register the class of a rule, and of rules inside it, so that states are trees."""
    if spec_of(type(rule)) is None:
        functor(type(rule))
    if dataclasses.is_dataclass(rule):
        for field in dataclasses.fields(rule):
            value = getattr(rule, field.name)
            for inner in value if isinstance(value, tuple) else (value,):
                if is_rule(inner):
                    as_functor(inner)


def is_rule(x: object, /) -> bool:
    """Whether an object has the two methods of a rule."""
    return (
        not isinstance(x, type) and callable(getattr(x, "init", None)) and callable(getattr(x, "apply", None))
    )


def count(param: Tensor, /) -> Tensor:
    """A new counter of steps, a 0-d int64 tensor on the parameter's device."""
    return torch.zeros((), dtype=torch.int64, device=param.device)


def positive(name: str, value: Hyper, *, zero: bool = True) -> None:
    """Refuse a negative hyperparameter (or zero)."""
    if not _tensor(name, value) and not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name}={value!r}: write a number {'of at least' if zero else 'above'} 0")


def within(name: str, value: Hyper) -> None:
    """Refuse a decay rate outside [0, 1)."""
    if not _tensor(name, value) and not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: write a number of at least 0 and below 1")


def two_rates(name: str, values: tuple[Hyper, Hyper]) -> None:
    """Refuse anything but a pair of decay rates."""
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise ValueError(f"{name}={values!r}: write a pair of decay rates, such as (0.9, 0.999)")
    within(f"{name}[0]", values[0])
    within(f"{name}[1]", values[1])


def _tensor(name: str, value: Any) -> bool:
    """Whether a hyperparameter is a 0-d tensor, which has no value to look at; else it is a number."""
    if isinstance(value, Tensor) and value.ndim == 0:
        return True
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = "; parameters go to setup(rule, model)" if name == "lr" else ""
        raise TypeError(f"{name} is a {type(value).__name__}; write a number or a 0-d tensor{hint}")
    return False


@cache
def forms(cls: type, /) -> tuple[bool, bool]:
    """Whether a rule's ``apply_all``, and its ``move_all``, say the same as its ``apply``.

    A subclass that overrides one of them says by it what the rule does now: the ones it inherits
    from further up are of another rule.
    """

    def distance(name: str) -> float:
        return next((i for i, base in enumerate(cls.__mro__) if name in base.__dict__), float("inf"))

    apply, apply_all, move_all = map(distance, ("apply", "apply_all", "move_all"))
    listed = apply_all <= apply and apply_all < float("inf")
    return listed, listed and move_all <= apply_all
