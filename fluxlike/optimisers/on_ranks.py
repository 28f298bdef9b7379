"""Parameters that are divided over a mesh: each rank moves the numbers that it keeps."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluxlike.optimisers.rule import hook
from fluxlike.placement.mesh import used
from fluxlike.trees.fmap import fleaves, fmap

__all__ = ["divided_as", "on_ranks", "require_together"]


def on_ranks(rule: Any, batch: Any, perform: Callable[[Any, Any], Any], /) -> Any:
    """What a rule gives for parameters over a mesh; None where it has to see more than each number alone."""
    known = used.mesh()
    if known is None or not hook(rule, "elementwise") or not any(map(known.over, batch.params)):
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


def divided_as(x: Tensor, state: Any, /) -> Any:
    """What is kept for a parameter: over a mesh, the tensors of its shape are divided as it is."""
    known = used.mesh()
    if known is None or not known.over(x):
        return state

    def divided(t: Tensor) -> Tensor:
        differs = known.over(t) and t.shape == x.shape and not known.alike(t, x)
        return known.divided(t, x) if differs else t

    return fmap(divided, state)


def require_together(what: str, x: Tensor, path: str, param: Tensor, /) -> None:
    """Refuse what is not over the mesh of its parameter, or is over one where the parameter is not.

    Args:
        what: "state", "gradient" or "average".
        x: a tensor of it; a number that is plain, such as a counter, may stay so.
        path: of the parameter.
        param: the parameter.

    Raises:
        ValueError: it names the path, and says what to write.
    """
    known = used.mesh()
    if known is None or known.together(x, param) or (not x.ndim and not known.over(x)):
        return
    found = f"the {what} of {path} is {known.where(x)}, and the parameter {known.where(param)}"
    if what == "gradient":
        right = "take the gradient of this model: grads = gradient(loss, model, x, y)"
    elif known.over(param):
        right = (
            "write state = fluxlike.to_device(state, mesh, plan), with the plan of the model, or make it of "
            "the model that is over the mesh: model = fluxlike.to_device(model, mesh, plan), then "
            "state = setup(rule, model)"
        )
    else:
        right = f"write state = fluxlike.to_device(state, {str(param.device)!r}), or move the model"
    raise ValueError(f"{found}; {right}")
