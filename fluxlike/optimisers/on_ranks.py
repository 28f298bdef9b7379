"""A rule over parameters that are divided over a mesh: each rank moves the numbers that it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluxlike.optimisers.rule import hook
from fluxlike.placement.mesh import used
from fluxlike.trees.fmap import fleaves, fmap

__all__ = ["on_ranks"]


def on_ranks(rule: Any, batch: Any, perform: Callable[[Any, Any], Any], /) -> Any:
    """What a rule gives for parameters over a mesh; None where it has to see more than each number alone."""
    known = used.mesh()
    if known is None or not batch.params or not known.over(batch.params[0]) or not hook(rule, "elementwise"):
        return None
    parts = dataclasses.replace(
        batch,
        states=[fmap(known.local, s) for s in batch.states],
        params=[known.local(x) for x in batch.params],
        grads=[
            known.local(g if known.alike(g, x) else known.placed_as([g], [x])[0])
            for g, x in zip(batch.grads, batch.params, strict=True)
        ],
        passing=[known.local(mask) for mask in batch.passing],
        scheduled=fmap(known.local, batch.scheduled),
    )
    moved = perform(fmap(known.local, rule), parts)
    if batch.consumed is not None:  # with a part, the tensor over the mesh is gone
        gone = set(map(id, batch.consumed))
        whole = [x for x in fleaves([batch.params, batch.states]) if known.over(x)]
        batch.consumed.extend(x for x in whole if id(known.local(x)) in gone)
    made: dict[int, Tensor] = {}  # counters are shared, and stay so

    def joined(old: Any, new: Any) -> Any:
        if not isinstance(new, Tensor) or not known.over(old):
            return new
        if id(new) not in made:
            made[id(new)] = known.joined(new, known.place(old))
        return made[id(new)]

    states = [fmap(joined, o, n) for o, n in zip(batch.states, moved.states, strict=True)]
    steps, params = (
        None if found is None else [joined(x, t) for x, t in zip(batch.params, found, strict=True)]
        for found in (moved.steps, moved.params)
    )
    return dataclasses.replace(moved, states=states, steps=steps, params=params)
