"""`Formula`: a rule written for one parameter, run over many.

Leaves move together when they share dtype, device and counters, so that a formula sees one counter.
Where tensors are plain numbers in memory, formulas run in blocks that stay in the processor's cache,
and results go to new memory or, donated, over the old; torch's fused kernels take the leaves they can.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike.optimisers.batch import Batch, Moved, Performing, passes
from fluxlike.optimisers.counters import read
from fluxlike.optimisers.fields import fields_of_state
from fluxlike.optimisers.group import Group
from fluxlike.optimisers.kernels import Kernel
from fluxlike.optimisers.leaves import Leaves
from fluxlike.optimisers.rule import hyperparameters, is_rule

__all__ = ["Formula", "Kernel", "settled"]


class Formula(Performing):
    """A rule whose formula is written for one parameter; base of the built-in rules.

    The state is None, a tensor, or a NamedTuple of tensors. A formula gets `Leaves`, which compute as
    a tensor does, and returns them; it does not look at values, and writes nothing in place.
    """

    #: Fields of the state that all leaves that move together share: 0-d tensors. A formula gets numbers
    #: or 0-d tensors for them; the one named ``step`` counts this step, from 1, and is kept for it.
    shared: ClassVar[tuple[str, ...]] = ()

    #: Whether every number moves by itself, so that a leaf may be cut into pieces.
    elementwise: ClassVar[bool] = True

    #: Whether a complex parameter can't be taken as pairs of real numbers.
    real_only: ClassVar[bool] = False

    def init(self, param: Tensor, /) -> Any:
        """The state for one parameter."""
        return None

    def formula(self, state: Any, x: Leaves, g: Leaves, /) -> tuple[Any, Leaves]:
        """The next state and the step, which is subtracted from x."""
        raise NotImplementedError

    def kernel(self) -> Kernel | None:
        """A kernel that does what the formula does, for numbers as hyperparameters; None without."""
        return None

    def perform(self, batch: Batch, /) -> Moved:
        """The formula, in groups, blocks and kernels."""
        rule = settled(self)
        plain = tracing.concrete() and not _recorded(rule, batch)
        states, out = list(batch.states), list(batch.params if batch.last else batch.grads)
        for members in _alike(rule, batch):
            passing = passes(batch.passing[members[0]])
            if passing is False:
                if not batch.last:
                    for k in members:
                        out[k] = torch.zeros_like(out[k])
                continue
            group = Group(rule, batch, members, None if passing is True else passing, plain)
            group.run()
            for k, state, x in zip(members, group.new_states(), group.out, strict=True):
                states[k], out[k] = state, x
        if batch.last:
            return Moved(states, None, out, batch.passing)
        return Moved(states, out, None, batch.passing)


def settled(rule: Any, /) -> Any:
    """The rule with numbers for hyperparameters that are 0-d tensors whose value can be read."""

    def read(v: Any) -> Any:
        return v.item() if isinstance(v, Tensor) and tracing.readable(v) else v

    if not any(isinstance(v, Tensor) for v in hyperparameters(rule)):
        return rule
    new = copy.copy(rule)
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        value = tuple(map(read, value)) if type(value) is tuple else read(value)
        object.__setattr__(new, field.name, settled(value) if is_rule(value) else value)
    return new


def _recorded(rule: Any, batch: Batch) -> bool:
    """Whether autograd records what is computed here."""
    if not torch.is_grad_enabled():
        return False
    tensors = (*batch.params, *batch.grads, *(h for h in hyperparameters(rule) if isinstance(h, Tensor)))
    return any(t.requires_grad for t in tensors) or any(
        t.requires_grad for s in batch.states for t in fields_of_state(s) if t is not None
    )


def _alike(rule: Formula, batch: Batch) -> list[list[int]]:
    """The leaves grouped by dtype, device, mask, counters and the kind of their state."""
    first, x0, m0 = batch.states[0], batch.params[0], batch.passing[0]
    counters = [getattr(first, name) for name in rule.shared] if isinstance(first, tuple) else []
    kind, dtype, device = type(first), x0.dtype, x0.device
    nothing = [t is None for t in first] if isinstance(first, tuple) else []
    if all(
        type(s) is kind
        and x.dtype is dtype
        and x.device == device
        and m is m0
        and all(getattr(s, name) is t for name, t in zip(rule.shared, counters, strict=True))
        and (not nothing or [t is None for t in s] == nothing)
        for s, x, m in zip(batch.states, batch.params, batch.passing, strict=True)
    ):
        return [list(range(len(batch.params)))]
    groups: dict[Any, list[int]] = {}
    tuples = (s for s in batch.states if isinstance(s, tuple))
    values = read(t for s in tuples for t in (getattr(s, name) for name in rule.shared) if t is not None)
    for k, (s, x, mask) in enumerate(zip(batch.states, batch.params, batch.passing, strict=True)):
        key: list[Any] = [x.dtype, x.device, id(mask), type(s)]
        if isinstance(s, tuple):
            key.extend(values.get(id(t), t is None) for t in s)
        groups.setdefault(tuple(key), []).append(k)
    return list(groups.values())
