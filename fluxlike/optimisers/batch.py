"""Applying one rule to the leaves that share it, in the form in which its class defines it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike.optimisers.on_ranks import on_ranks
from fluxlike.optimisers.rule import BatchRule, LeafError, form_of, hyperparameters_of, replaced, rules_in
from fluxlike.placement.mesh import used
from fluxlike.trees.structure import flatten

__all__ = [
    "Batch",
    "Moved",
    "Performing",
    "held",
    "merged",
    "on_part",
    "passes",
    "perform",
]


@dataclass
class Batch:
    """Leaves that one rule moves.

    Attributes:
        states: the rule's state for each.
        params: the parameters, real and at least float32.
        grads: their gradients, or what the link before made of them.
        passing: for each, a 0-d bool tensor that says whether this step moves it; None if it does.
        last: whether the result is subtracted from the parameters, so that they may be moved here.
        consumed: where rewritten tensors are put down; None to leave all tensors as they are.
        scheduled: for each, the hyperparameters that a schedule gives it, where they differ.
    """

    states: list[Any]
    params: list[Tensor]
    grads: list[Tensor]
    passing: list[Tensor | None]
    last: bool = False
    consumed: list[Tensor] | None = None
    scheduled: list[dict[str, Any]] | None = None

    def with_(self, **changes: Any) -> Batch:
        """The same with other fields."""
        return dataclasses.replace(self, **changes)

    def part(self, members: Sequence[int]) -> Batch:
        """Some of the leaves."""
        return self.with_(
            states=[self.states[k] for k in members],
            params=[self.params[k] for k in members],
            grads=[self.grads[k] for k in members],
            passing=[self.passing[k] for k in members],
            scheduled=None if self.scheduled is None else [self.scheduled[k] for k in members],
        )


@dataclass
class Moved:
    """What a rule gives for a batch: the next states, and steps or moved parameters.

    Attributes:
        states: the next states.
        steps: what is subtracted from each parameter; None if `params` are given.
        params: the parameters after the step; None if `steps` are given.
        passing: as in `Batch`, for the links after.
    """

    states: list[Any]
    steps: list[Tensor] | None
    params: list[Tensor] | None
    passing: list[Tensor | None]

    def moved(self, batch: Batch) -> list[Tensor]:
        """The parameters after the step."""
        if self.params is None:
            assert self.steps is not None
            pairs = zip(batch.params, self.steps, strict=True)
            self.params = [_minus(x, step, batch.consumed) for x, step in pairs]
        return self.params

    def stepped(self, batch: Batch) -> list[Tensor]:
        """The steps."""
        if self.steps is None:
            assert self.params is not None
            self.steps = [x - y for x, y in zip(batch.params, self.params, strict=True)]
        return self.steps


def _minus(x: Tensor, step: Tensor, consumed: list[Tensor] | None) -> Tensor:
    if consumed is None:
        return x - step
    consumed.append(x)
    return x.detach().sub_(step)


def _apart(x: Tensor, state: Any) -> Any:
    """A state that shares no memory with a parameter, which is about to be written over."""
    leaves, treedef = flatten(state)
    known = used.mesh()

    def memory(t: Tensor) -> int:
        return (t if known is None else known.local(t)).untyped_storage().data_ptr()

    shares = [isinstance(t, Tensor) and memory(t) == memory(x) for t in leaves]
    if not any(shares):
        return state
    return treedef.unflatten([t.clone() if s else t for t, s in zip(leaves, shares, strict=True)])


class Performing(BatchRule):
    """Base of formulas and wrappers, which perform over batches."""

    def apply_all(
        self, states: Sequence[Any], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """The next states and the steps of all leaves that share the rule."""
        batch = Batch(list(states), list(params), list(grads), [None] * len(params))
        moved = self.perform(batch)
        return moved.states, moved.stepped(batch)

    def perform(self, batch: Batch, /) -> Moved:
        """The rule over a batch."""
        raise NotImplementedError


def perform(rule: Any, batch: Batch) -> Moved:
    """Apply a rule to leaves that share it, in the form that its class defines most closely.

    Raises:
        LeafError: a result that is none, or a state that doesn't fit its parameter.
    """
    if batch.scheduled is not None and hyperparameters_of(rule) & batch.scheduled[0].keys():
        return _scheduled(rule, batch)
    moved = on_ranks(rule, batch, perform)
    if moved is not None:
        return moved
    cls: type = type(rule)
    form = form_of(cls)
    if form in ("perform", "formula"):
        return rule.perform(batch)
    if form == "apply_all":
        after, steps = rule.apply_all(batch.states, batch.params, batch.grads)
        after, steps = list(after), list(steps)
        _check_lengths(rule, batch, after, steps)
    else:
        leaves = zip(batch.states, batch.params, batch.grads, strict=True)
        results = [_apply_one(rule, k, *leaf) for k, leaf in enumerate(leaves)]
        after, steps = [s for s, _ in results], [d for _, d in results]
    for k, (x, d) in enumerate(zip(batch.params, steps, strict=True)):
        if not isinstance(d, Tensor) or d.shape != x.shape:
            found = tuple(d.shape) if isinstance(d, Tensor) else repr(d)
            raise LeafError(k, f"a step of {found}; the parameter has the shape {tuple(x.shape)}")
    if batch.consumed is not None:
        after = [_apart(x, state) for x, state in zip(batch.params, after, strict=True)]
        steps = [_apart(x, d) for x, d in zip(batch.params, steps, strict=True)]
    return held(batch, after, steps)


def _scheduled(rule: Any, batch: Batch) -> Moved:
    """A rule whose own hyperparameters differ from leaf to leaf, by a schedule."""
    assert batch.scheduled is not None
    groups: dict[int, list[int]] = {}
    for k, values in enumerate(batch.scheduled):
        groups.setdefault(id(values), []).append(k)
    inside = bool(list(rules_in(rule))[1:])
    parts = []
    for members in groups.values():
        values = batch.scheduled[members[0]]
        own = {name: values[name] for name in hyperparameters_of(rule) & values.keys()}
        left = batch if inside else batch.with_(scheduled=None)
        if inside:  # those of rules inside are still to come
            rest = [{n: v for n, v in values.items() if n not in own}] * len(batch.states)
            left = batch.with_(scheduled=rest)
        parts.append(on_part(replaced(rule, own), left, members))
    return merged(batch, parts)


def _apply_one(rule: Any, k: int, state: Any, param: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
    given = (param, grad, *(t for t in flatten(state)[0] if isinstance(t, Tensor)))
    before = [t._version for t in given] if tracing.concrete() else []
    result = rule.apply(state, param, grad)
    if before and [t._version for t in given] != before:
        raise LeafError(k, "apply changed its arguments in place; compute new tensors instead")
    if not isinstance(result, tuple) or len(result) != 2:
        raise LeafError(k, f"apply returned a {type(result).__name__}; return (state, step)")
    return result


def _check_lengths(rule: Any, batch: Batch, states: Sequence[Any], steps: Sequence[Any]) -> None:
    n = len(batch.params)
    if len(states) != n or len(steps) != n:
        raise ValueError(
            f"{type(rule).__name__}.apply_all returned {len(states)} states and {len(steps)} steps "
            f"for {n} leaves"
        )


def merged(batch: Batch, parts: Sequence[tuple[Sequence[int], Moved]]) -> Moved:
    """The results of parts of a batch, each with the places of its leaves, as one."""
    states, out, passing = list(batch.states), list(batch.grads), list(batch.passing)
    for members, moved in parts:
        values = moved.moved(batch.part(members)) if batch.last else moved.stepped(batch.part(members))
        for k, state, x, mask in zip(members, moved.states, values, moved.passing, strict=True):
            states[k], out[k], passing[k] = state, x, mask
    return Moved(states, None, out, passing) if batch.last else Moved(states, out, None, passing)


def on_part(rule: Any, batch: Batch, members: Sequence[int]) -> tuple[Sequence[int], Moved]:
    """A rule applied to some leaves of a batch, for `merged`."""
    try:
        return members, perform(rule, batch.part(members))
    except LeafError as error:
        raise LeafError(members[error.leaf], str(error)) from None


def held(batch: Batch, after: list[Any], steps: list[Tensor]) -> Moved:
    """States and steps, held back where a link before said so."""
    if any(p is not None for p in batch.passing):
        for k, (mask, old) in enumerate(zip(batch.passing, batch.states, strict=True)):
            if mask is not None:
                after[k] = _hold(k, mask, old, after[k])
                steps[k] = torch.where(mask, steps[k], 0.0)
    return Moved(after, steps, None, batch.passing)


def _hold(k: int, mask: Tensor, old: Any, new: Any) -> Any:
    """The new state where the mask is true, the old one where it is not."""
    if isinstance(new, Tensor):
        return new if new is old else torch.where(mask, new, old)
    before, treedef = flatten(old)
    leaves, new_def = flatten(new)
    if new_def != treedef:
        raise LeafError(k, "apply returned a state of another structure than init")
    for i, (a, b) in enumerate(zip(before, leaves, strict=True)):
        if isinstance(b, Tensor):
            leaves[i] = _hold(k, mask, a, b)
        elif a is not b and a != b:
            raise LeafError(
                k, f"{b!r} in the state changes and is no tensor, so that no link can hold it back"
            )
    return treedef.unflatten(leaves)


def passes(mask: Tensor | None) -> bool | Tensor:
    """A mask as a bool where its value can be read, None as True."""
    if mask is None:
        return True
    return bool(mask) if tracing.readable(mask) else mask
