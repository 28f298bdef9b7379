"""Changing a running optimiser: `adjust`, `freeze` and `thaw`, all of them pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fluxlike.optimisers.lane import lane_of
from fluxlike.optimisers.rule import fields_of, is_rule, one_of_equal, replaced
from fluxlike.optimisers.state import ParamState, is_param_state
from fluxlike.trees.at import At
from fluxlike.trees.places import Where, find_places
from fluxlike.trees.structure import flatten

__all__ = ["Adjuster", "adjust", "freeze", "thaw"]


def adjust(
    state: Any,
    lr: Any = None,
    /,
    *,
    where: Where | tuple[Where, ...] | None = None,
    **hyperparameters: Any,
) -> Any:
    """A state whose rules have other hyperparameters; moments and counters are kept.

    Args:
        state: the state of an optimiser.
        lr: the new learning rate, of every rule that has one. (default: the old ones)
        where: places of the state, as in `at`, at which to change it. (default: everywhere)
        hyperparameters: new values by name, for every rule that has the name.

    Returns:
        A new state; the state itself where every rule has these values already.

    Raises:
        TypeError: nothing to change was given, or text as the learning rate.
        ValueError: no rule there has a hyperparameter of that name, or it refuses the value.

    Example:
        >>> import torch, fluxlike as fl
        >>> state = fl.setup(fl.Adam(1e-3), [torch.ones(1), torch.ones(1)])
        >>> state = fl.adjust(state, 1e-4)
        >>> state = fl.adjust(state, eps=1e-6, where="[1]")
        >>> [(s.rule.lr, s.rule.eps) for s in state]
        [(0.0001, 1e-08), (0.0001, 1e-06)]
    """
    changes = dict(hyperparameters)
    if isinstance(lr, str):
        raise TypeError(
            f"adjust got the text {lr!r} as the learning rate: write a number, adjust(state, 1e-4), and a "
            f"place by name, where={lr!r}"
        )
    if lr is not None:
        if "lr" in changes:
            raise TypeError(
                "adjust got the learning rate twice: as its second argument and as lr=; a place goes to "
                "adjust by name: where="
            )
        changes["lr"] = lr
    if not changes:
        raise TypeError("adjust got nothing to change: write adjust(state, 1e-4) or adjust(state, eps=1e-6)")
    return Adjuster(where)(state, changes)


class Adjuster:
    """`adjust` for states that follow each other: places are looked for once.

    Args:
        where: places, as in `adjust`.
    """

    def __init__(self, where: Where | tuple[Where, ...] | None) -> None:
        self.where = where
        self._treedef: Any = None
        self._chosen: list[int] = []
        self._joined = False  # with parameters elsewhere, by counters

    def __call__(self, state: Any, changes: Mapping[str, Any], /) -> Any:
        """A state with these hyperparameters, as of `adjust`."""
        entries, treedef = flatten(state, is_param_state)
        chosen = self.chosen(state, entries, treedef)
        if not chosen:
            raise _no_parameter(entries)
        shared = one_of_equal(entries[i].rule for i in chosen)
        rules = {id(rule): rule for rule in shared.values()}
        made = _changed(rules, changes)
        if all(_same(rule, made[key]) for key, rule in rules.items()):
            return state
        new: dict[int, ParamState] = {}  # one for tied places
        counters: dict[int, Tensor] = {}
        after = list(entries)
        for i in chosen:
            entry = entries[i]
            key = id(entry)
            if key not in new:
                own = _apart(entry.state, counters) if self._joined else entry.state
                new[key] = ParamState(made[id(shared[id(entry.rule)])], own, entry.frozen)
            after[i] = new[key]
        self._joined = False
        lane = lane_of(entries)
        if lane is not None:
            lane.follow(entries, after, treedef)
        return treedef.unflatten(after)

    def chosen(self, state: Any, entries: Sequence[Any], treedef: Any) -> list[int]:
        """Which leaves of a state, down to its entries, are entries at the places."""
        if treedef != self._treedef:
            if self.where is None:
                self._chosen = [i for i, entry in enumerate(entries) if is_param_state(entry)]
            else:
                marked = flatten(_map_entries(_copy, state, self.where), is_param_state)[0]
                self._chosen = [
                    i for i, mark in enumerate(marked) if is_param_state(mark) and mark is not entries[i]
                ]
            self._treedef = treedef
            self._joined = len(self._chosen) < sum(map(is_param_state, entries))
        return self._chosen


def _apart(state: Any, made: dict[int, Tensor]) -> Any:
    """A state with counters of its own, as it has after a step apart from the others: `jit` sees the tie."""
    if isinstance(state, Tensor) and not state.ndim:
        return made.setdefault(id(state), state.clone())
    if isinstance(state, tuple):
        parts = [_apart(part, made) for part in state]
        return state._make(parts) if hasattr(state, "_make") else tuple(parts)
    return state


def _copy(entry: ParamState) -> ParamState:
    return ParamState(entry.rule, entry.state, entry.frozen)


def _changed(rules: Mapping[int, Any], changes: Mapping[str, Any]) -> dict[int, Any]:
    """The rules with other hyperparameters."""
    known = set().union(*map(fields_of, rules.values()))
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(
            f"no rule there has a hyperparameter {unknown[0]!r}; they have "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return {key: replaced(rule, dict(changes)) for key, rule in rules.items()}


def _same(a: Any, b: Any) -> bool:
    """Whether two values of hyperparameters are one, as far as that can be said without reading a tensor."""
    if a is b:
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if is_rule(a):
        return all(_same(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a))
    return isinstance(a, (bool, int, float, str)) and a == b


def freeze(state: Any, /, where: Where | tuple[Where, ...] | None = None) -> Any:
    """A state that leaves some parameters alone, with their moments, until `thaw`.

    Their gradients are still computed; `gradient` with ``wrt=`` avoids that. A tied parameter is
    frozen if any of its places is.

    Args:
        state: the state of an optimiser.
        where: places of the state, as in `at`. (default: all)

    Returns:
        A new state.

    Raises:
        ValueError: there is no parameter at the place, or `state` is none.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(4, 3), fl.Dense(3, 2))
        >>> state = fl.freeze(fl.setup(fl.Adam(), model), lambda s: s.layers[0])
        >>> state.layers[0].weight.frozen, state.layers[1].weight.frozen
        (True, False)

        All but one place:

        >>> state = fl.thaw(fl.freeze(state), ".layers[1]")
        >>> state.layers[0].weight.frozen, state.layers[1].weight.frozen
        (True, False)
    """
    return _marked(state, where, frozen=True)


def thaw(state: Any, /, where: Where | tuple[Where, ...] | None = None) -> Any:
    """A state in which some parameters move again; undoes `freeze`.

    Args:
        state: the state of an optimiser.
        where: places of the state, as in `at`. (default: all)

    Returns:
        A new state.

    Raises:
        ValueError: there is no parameter at the place, or `state` is none.

    Example:
        >>> import torch, fluxlike as fl
        >>> frozen = fl.freeze(fl.setup(fl.Adam(), {"w": torch.ones(1)}))
        >>> fl.thaw(frozen, "['w']")["w"].frozen
        False
    """
    return _marked(state, where, frozen=False)


def _marked(state: Any, where: Where | tuple[Where, ...] | None, *, frozen: bool) -> Any:
    counters: dict[int, Tensor] = {}

    def mark(entry: ParamState) -> ParamState:
        own = entry.state if where is None else _apart(entry.state, counters)
        return ParamState(entry.rule, own, frozen)

    return _map_entries(mark, state, where)


def _map_entries(
    f: Callable[[ParamState], ParamState], state: Any, where: Where | tuple[Where, ...] | None
) -> Any:
    found = 0

    def visit(subtree: Any) -> Any:
        nonlocal found
        leaves, treedef = flatten(subtree, is_param_state)
        found += sum(map(is_param_state, leaves))
        return treedef.unflatten([f(x) if is_param_state(x) else x for x in leaves])

    result = visit(state) if where is None else At(state, *find_places(state, where, ParamState)).apply(visit)
    if not found:
        raise _no_parameter(flatten(state, is_param_state)[0])
    return result


def _no_parameter(entries: Sequence[Any]) -> ValueError:
    if not any(map(is_param_state, entries)):
        return ValueError(
            "the first argument holds no state of an optimiser; give what setup or update returned"
        )
    return ValueError(
        "there is no parameter at the chosen place of the state; give a place that holds the state of a "
        "parameter, such as lambda s: s.layers[0]"
    )
