"""Changing a running optimiser: `adjust`, `freeze` and `thaw`, all of them pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxlike.optimisers.rule import fields_of, replaced
from fluxlike.optimisers.state import ParamState, is_param_state
from fluxlike.trees.at import at
from fluxlike.trees.places import Where
from fluxlike.trees.structure import flatten

__all__ = ["adjust", "freeze", "thaw"]

_NOTHING = object()


def adjust(
    state: Any,
    lr: Any = _NOTHING,
    /,
    *,
    where: Where | tuple[Where, ...] | None = None,
    **hyperparameters: Any,
) -> Any:
    """A state whose rules have other hyperparameters; moments and counters are kept.

    Args:
        state: the state of an optimiser.
        lr: the new learning rate, of every rule that has one.
        where: places of the state, as in `at`, at which to change it. (default: everywhere)
        hyperparameters: new values by name, for every rule that has the name.

    Returns:
        A new state.

    Raises:
        TypeError: nothing to change was given.
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
    if lr is not _NOTHING:
        if "lr" in changes:
            raise TypeError("adjust got the learning rate twice: as its second argument and as lr=")
        changes["lr"] = lr
    if not changes:
        raise TypeError("adjust got nothing to change: write adjust(state, 1e-4) or adjust(state, eps=1e-6)")
    known: set[str] = set()
    made: dict[int, Any] = {}  # rules are shared between parameters, and stay so

    def change(entry: ParamState) -> ParamState:
        key = id(entry.rule)
        if key not in made:
            known.update(fields_of(entry.rule))
            made[key] = replaced(entry.rule, changes)
        return ParamState(made[key], entry.state, entry.frozen)

    adjusted = _map_entries(change, state, where)
    unknown = sorted(set(changes) - known)
    if unknown:
        raise ValueError(
            f"no rule there has a hyperparameter {unknown[0]!r}; they have "
            f"{', '.join(sorted(known)) or 'none'}"
        )
    return adjusted


def freeze(state: Any, where: Where | tuple[Where, ...] | None = None, /) -> Any:
    """A state that leaves some parameters alone, with their moments, until `thaw`.

    Their gradients are still computed; `gradient` with ``wrt=`` avoids that. A tied parameter is
    frozen if any of its places is.

    Args:
        state: the state of an optimiser.
        where: places of the state, as in `at`. (default: all)

    Returns:
        A new state.

    Raises:
        ValueError: there is no parameter at the place.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(4, 3), fl.Dense(3, 2))
        >>> state = fl.freeze(fl.setup(fl.Adam(), model), lambda s: s.layers[0])
        >>> state.layers[0].weight.frozen, state.layers[1].weight.frozen
        (True, False)
    """
    return _map_entries(lambda entry: ParamState(entry.rule, entry.state, True), state, where)


def thaw(state: Any, where: Where | tuple[Where, ...] | None = None, /) -> Any:
    """A state in which some parameters move again; undoes `freeze`.

    Args:
        state: the state of an optimiser.
        where: places of the state, as in `at`. (default: all)

    Returns:
        A new state.

    Raises:
        ValueError: there is no parameter at the place.

    Example:
        >>> import torch, fluxlike as fl
        >>> frozen = fl.freeze(fl.setup(fl.Adam(), {"w": torch.ones(1)}))
        >>> fl.thaw(frozen, "['w']")["w"].frozen
        False
    """
    return _map_entries(lambda entry: ParamState(entry.rule, entry.state, False), state, where)


def _map_entries(
    f: Callable[[ParamState], ParamState], state: Any, where: Where | tuple[Where, ...] | None
) -> Any:
    found = 0

    def visit(subtree: Any) -> Any:
        nonlocal found
        leaves, treedef = flatten(subtree, is_param_state)
        found += sum(map(is_param_state, leaves))
        return treedef.unflatten([f(x) if is_param_state(x) else x for x in leaves])

    result = visit(state) if where is None else at(state, where).apply(visit)
    if not found:
        place = "in the state" if where is None else "at the chosen place of the state"
        raise ValueError(
            f"there is no parameter {place}; give what setup returned, and a place that holds the state "
            "of a parameter, such as lambda s: s.layers[0]"
        )
    return result
