"""What a rule is: two functions that say how one parameter moves."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fluxlike.trees.functor import default_scalars, functor, spec_of

__all__ = [
    "BatchRule", "Hyper", "LeafError", "ListRule", "Rule", "as_functor", "counter", "fields_of", "form_of",
    "hook", "hyperparameters", "hyperparameters_of", "is_rule", "kernel_holds", "number", "one_of_equal",
    "positive", "replaced", "rules_in", "shared_counters", "two_rates", "whole", "within",
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


class BatchRule:
    """Base of the rules that run over batches of leaves: formulas, lists and wrappers."""

    prints_itself = True  # on one line, as it is written


def hook(rule: Any, name: str, /) -> Any:
    """What a rule of ours has by this name, or None; a user's rule may mean something else by it."""
    return getattr(rule, name, None) if isinstance(rule, BatchRule) else None


class ListRule(BatchRule):
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


class LeafError(ValueError):
    """An error about one leaf of a list; `update` adds its path."""

    def __init__(self, leaf: int, message: str) -> None:
        super().__init__(message)
        self.leaf = leaf


def rules_in(rule: Any, /) -> Iterator[Any]:
    """A rule, and the rules inside it."""
    yield rule
    for field in dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ():
        value = getattr(rule, field.name)
        for inner in value if isinstance(value, tuple) else (value,):
            if is_rule(inner):
                yield from rules_in(inner)


def as_functor(rule: Rule, /) -> None:
    """Register the class of a rule, and of rules inside it, so that states are trees."""
    for part in rules_in(rule):
        if spec_of(type(part)) is None:
            functor(type(part))


def _scalars(cls: type) -> list[str]:
    """The fields of a class of rules whose floats are inputs to `jit`, and stacked by `stack`.

    Of ours, those that may be 0-d tensors too; a user's rule says it by ``functor(scalars=…)``, else
    they are all its fields.
    """
    methods = (getattr(cls, name, None) for name in ("init", "apply"))
    if not dataclasses.is_dataclass(cls) or not all(map(callable, methods)):
        return []
    ours = issubclass(cls, BatchRule)
    return [f.name for f in dataclasses.fields(cls) if not ours or "Hyper" in str(f.type)]


default_scalars.append(_scalars)


def hyperparameters(rule: Any, /) -> Iterator[Any]:
    """The values of a rule's fields, those of pairs and of rules inside it one by one."""
    if not dataclasses.is_dataclass(rule):
        return
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if is_rule(part):
                yield from hyperparameters(part)
            else:
                yield part


def fields_of(rule: Any, /) -> set[str]:
    """The names of the hyperparameters of a rule and of those inside it."""
    names: set[str] = set()
    for field in dataclasses.fields(rule) if dataclasses.is_dataclass(rule) else ():
        value = getattr(rule, field.name)
        inside = value if isinstance(value, tuple) and value else (value,)
        if all(is_rule(part) for part in inside):
            names.update(*(fields_of(part) for part in inside))
        elif field.name != "schedules":
            names.add(field.name)
    return names


def hyperparameters_of(rule: Any, /) -> set[str]:
    """The names of a rule's own hyperparameters, without those of rules inside it."""
    if not dataclasses.is_dataclass(rule):
        return set()
    fields = {f.name: getattr(rule, f.name) for f in dataclasses.fields(rule)}
    return {
        n
        for n, v in fields.items()
        if not is_rule(v) and not (isinstance(v, tuple) and v and all(map(is_rule, v)))
    }


def replaced(rule: Any, changes: dict[str, Any], /) -> Any:
    """A rule with other hyperparameters, also in the rules inside it; checked as at construction."""
    if not dataclasses.is_dataclass(rule):
        return rule
    adjusted = hook(rule, "adjusted")
    new: dict[str, Any] = {}
    if adjusted is not None:
        rule, changes = adjusted(changes)
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        if is_rule(value):
            new[field.name] = replaced(value, changes)
        elif isinstance(value, tuple) and value and all(map(is_rule, value)):
            new[field.name] = tuple(replaced(part, changes) for part in value)
        elif field.name in changes:
            new[field.name] = changes[field.name]
    if not new:
        return rule
    result = copy.copy(rule)
    for name, value in new.items():
        object.__setattr__(result, name, value)
    check = getattr(result, "__post_init__", None)
    if check is not None:
        check()
    return result


def one_of_equal(rules: Iterable[Any], /) -> dict[int, Any]:
    """One object for rules of equal value, by the id of each: a copied state has one a parameter."""
    by_value: dict[Any, Any] = {}
    shared: dict[int, Any] = {}
    for rule in {id(rule): rule for rule in rules}.values():
        try:
            shared[id(rule)] = by_value.setdefault((type(rule), rule), rule)
        except (TypeError, RuntimeError):  # not to be hashed, or of tensors, which have no one truth
            shared[id(rule)] = rule
    return shared


def is_rule(x: object, /) -> bool:
    """Whether an object has the two methods of a rule."""
    return (
        not isinstance(x, type) and callable(getattr(x, "init", None)) and callable(getattr(x, "apply", None))
    )


class _Counters:
    """The counters of one `setup`: leaves of one rule and dtype share them, field by field."""

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}
        self._leaf: tuple[Any, ...] = ()
        self._number = 0

    def of(self, rule: Any, param: Tensor) -> None:
        """Say whose counters come next."""
        try:
            hash(rule)
            same: Any = (type(rule), rule)
        except TypeError:
            same = id(rule)
        self._leaf, self._number = (same, param.dtype, param.device), 0

    def get(self, start: float, kind: Any, make: Callable[[], Tensor]) -> Tensor:
        """The counter of this leaf that stands at the same place as that of an earlier one."""
        self._number += 1
        key = (*self._leaf, self._number, start, kind)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


_counters: ContextVar[_Counters | None] = ContextVar("fluxlike_counters", default=None)


@contextmanager
def shared_counters() -> Iterator[_Counters]:
    """Inside, `counter` gives one tensor for all leaves that move together."""
    counters = _Counters()
    token = _counters.set(counters)
    try:
        yield counters
    finally:
        _counters.reset(token)


def counter(param: Tensor, /, start: float = 0, kind: Any = None) -> Tensor:
    """A 0-d tensor on the parameter's device, int64 for a count of steps, float64 for a float.

    Leaves that move together share it, so that it is computed once for all of them; those of another
    `kind` have their own.
    """
    dtype = torch.int64 if isinstance(start, int) else torch.float64
    if dtype == torch.float64 and param.device.type == "mps":
        dtype = torch.float32  # a device without float64

    def make() -> Tensor:
        return torch.full((), start, dtype=dtype, device=param.device)

    known = _counters.get()
    return make() if known is None else known.get(start, kind, make)


def number(name: str, value: Any) -> bool:
    """Whether a hyperparameter is a number; a 0-d tensor has no value to look at, the rest is refused."""
    if isinstance(value, Tensor):
        if value.ndim == 0:
            return False
        raise TypeError(
            f"{name} is a tensor of shape {tuple(value.shape)}; write a number or a 0-d tensor. In stacked "
            "trees each member has its own: go over them with fluxlike.vmap"
        )
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        hint = ""
        if name == "lr":
            hint = "; parameters go to setup(rule, model), a schedule to Scheduled(rule, lr=schedule)"
        raise TypeError(f"{name} is a {type(value).__name__}; write a number or a 0-d tensor{hint}")
    return True


def whole(name: str, value: Any, *, least: int) -> None:
    """Refuse anything but a whole number of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: write a whole number of at least {least}")


def positive(name: str, value: Any, *, zero: bool = True) -> None:
    """Refuse a negative hyperparameter (or zero)."""
    if number(name, value) and not (value >= 0 if zero else value > 0):
        raise ValueError(f"{name}={value!r}: write a number {'of at least' if zero else 'above'} 0")


def within(name: str, value: Any) -> None:
    """Refuse a decay rate outside [0, 1)."""
    if number(name, value) and not 0 <= value < 1:
        raise ValueError(f"{name}={value!r}: write a number of at least 0 and below 1")


def two_rates(name: str, values: Any) -> None:
    """Refuse anything but a pair of decay rates."""
    if not isinstance(values, tuple) or len(values) != 2:
        raise ValueError(f"{name}={values!r}: write a pair of decay rates, such as (0.9, 0.999)")
    within(f"{name}[0]", values[0])
    within(f"{name}[1]", values[1])


@cache
def form_of(cls: type, /) -> str:
    """In which form a class of rules says what it does: the one that is defined most closely.

    A subclass that overrides one of them says by it what the rule does now: the ones it inherits
    from further up are of another rule.
    """
    ours = ("perform", "formula") if issubclass(cls, BatchRule) else ()
    return min((*ours, "apply_all", "apply"), key=lambda name: _distance(cls, name))


@cache
def kernel_holds(cls: type, /) -> bool:
    """Whether the kernel of a class does what its formula says.

    It does unless a class below the one that defines it has methods of its own, which the formula
    may be made of.
    """
    for base in cls.__mro__:
        if "kernel" in base.__dict__:
            return True
        if any(callable(v) and not n.startswith("__") and n != "init" for n, v in base.__dict__.items()):
            return False
    return False


def _distance(cls: type, name: str) -> float:
    return next((i for i, base in enumerate(cls.__mro__) if name in base.__dict__), float("inf"))
