"""What a rule is: two functions that say how one parameter moves."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from fluxlike.advice import OF_RULES, Absent, teaching
from fluxlike.trees.functor import default_scalars, functor, on_register, spec_of

__all__ = [
    "BatchRule", "Hyper", "LeafError", "ListRule", "Rule", "as_functor", "fields_of", "form_of", "hook",
    "hyperparameters", "hyperparameters_of", "is_rule", "kernel_holds", "key_of", "one_of_equal", "replaced",
    "rules_in",
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

    def apply(self, state: Any, param: Tensor, grad: Tensor, /) -> tuple[Any, Tensor]:
        """The next state and the step of one leaf, which is a batch of one."""
        states, steps = self.apply_all([state], [param], [grad])
        return states[0], steps[0]

    def apply_all(
        self, states: Sequence[Any], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """The next states and the steps of all leaves that share the rule."""
        raise NotImplementedError

    def __dir__(self) -> list[str]:
        return [name for name in super().__dir__() if name not in OF_RULES or hasattr(self, name)]


for _name, _write in OF_RULES.items():
    setattr(BatchRule, _name, Absent(_name, _write))


def _answer(cls: Any) -> None:
    """Give a class of rules what it says to arguments that it does not have."""
    if cls.__module__.startswith("fluxlike.") and issubclass(cls, BatchRule):
        teaching(cls)


on_register(_answer)


def hook(rule: Any, name: str, /) -> Any:
    """What a rule of ours has by this name, or None; a user's rule may mean something else by it."""
    return getattr(rule, name, None) if isinstance(rule, BatchRule) else None


class ListRule(BatchRule):
    """A rule whose formula is written over lists of leaves."""

    def init(self, param: Tensor, /) -> Any:
        """No state, unless a rule says otherwise."""
        return None


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


def key_of(rule: Any, /) -> Any:
    """What rules of equal value have in common; of one that can't be hashed, what only it has."""
    try:
        hash(rule)
        return type(rule), rule
    except TypeError:
        return id(rule)


def is_rule(x: object, /) -> bool:
    """Whether an object has the two methods of a rule."""
    return (
        not isinstance(x, type) and callable(getattr(x, "init", None)) and callable(getattr(x, "apply", None))
    )


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
