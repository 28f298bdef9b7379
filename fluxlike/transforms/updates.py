"""Buffers without gradients: `withupdates` and `apply_updates`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluxlike.scope import assigned, mode
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, leaves_like, structure_of
from fluxlike.trees.trainables import parameters

__all__ = ["apply_updates", "put_assigned", "withupdates"]


def withupdates(f: Callable[..., Any], /, *args: Any, argnums: int | tuple[int, ...] = 0) -> tuple[Any, Any]:
    """Call ``f(*args)`` in train mode and collect what its layers assign to their buffers.

    Args:
        f: any function of trees.
        args: its arguments; if any holds a functor, the call is in train mode.
        argnums: which argument's buffers to report; a tuple of numbers gives a tuple of trees.
            (default: 0)

    Returns:
        ``(out, updates)``: what `f` returned, and a tree with the treedef of the argument that holds
        `Assigned` at the buffers that moved and None elsewhere.

    Raises:
        ValueError: `argnums` names no argument.

    Example:
        >>> import torch, fluxlike as fl
        >>> norm = fl.BatchNorm(1)
        >>> _, updates = fl.withupdates(lambda m, x: m(x), norm, torch.tensor([[1.0], [3.0]]))
        >>> fl.apply_updates(norm, updates).running_mean
        tensor([0.2000])
    """
    numbers = (argnums,) if isinstance(argnums, int) else argnums
    if any(not 0 <= n < len(args) for n in numbers):
        raise ValueError(f"argnums={argnums!r}: {len(args)} arguments were given, counted from 0")
    called, opened = list(args), []
    handles: list[Tensor] = []
    for n in numbers:
        leaves, treedef = flatten(args[n])
        # Views, so that the same buffer reached by a closure or another argument is not this one.
        fresh = {
            id(x): x.view_as(x) if x.layout is torch.strided else x.detach()
            for x in leaves
            if isinstance(x, Tensor)
        }
        first = parameters(leaves, structure_of(treedef).trainable).first
        handles += [fresh[id(leaves[i])] for i in first]
        called[n] = treedef.unflatten([fresh.get(id(x), x) for x in leaves])
        opened.append((leaves, treedef, fresh))
    trains = any(structure_of(flatten(a)[1]).holds_functor for a in args if not isinstance(a, Tensor))
    aliases = [alias for _, _, fresh in opened for alias in fresh.values()]
    trained = set(map(id, handles))
    frame = assigned.Frame((a for a in aliases if id(a) not in trained), handles)
    frame_token = assigned.enter(frame)
    mode_token = mode.ambient("train") if trains else None
    try:
        out = f(*called)
    finally:
        assigned.leave(frame_token)
        if mode_token is not None:
            mode.restore(mode_token)
    updates = []
    for leaves, treedef, fresh in opened:
        report: list[Any] = []
        for x in leaves:
            alias = fresh.pop(id(x), None) if isinstance(x, Tensor) else None  # first place of a tie
            value = None if alias is None else frame.values.get(id(alias))
            report.append(None if value is None else Assigned(value))
        updates.append(treedef.unflatten(report))
    return out, updates[0] if isinstance(argnums, int) else tuple(updates)


def apply_updates(model: Any, updates: Any, /) -> Any:
    """A model with the buffers that `withupdates` collected.

    Args:
        model: the model that was called.
        updates: its tree of updates.

    Returns:
        A tree of the same structure; `model` is unchanged.

    Raises:
        ValueError: the structures differ, or a value has another shape than its buffer.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Dense(2, 1)
        >>> out, updates = fl.withupdates(lambda m: m.weight.sum(), model)
        >>> fl.tree.allclose(fl.apply_updates(model, updates), model)
        True
    """
    leaves, treedef = flatten(model)
    found = leaves_like(treedef, updates, name="updates", like="the model")
    where = structure_of(treedef).paths
    for path, x in zip(where, found, strict=True):
        if x is not None and not isinstance(x, Assigned):
            raise ValueError(f"updates hold a {type(x).__name__} at {path}; they hold Assigned or None")
    return treedef.unflatten(put_assigned(leaves, found, where))


def put_assigned(leaves: list[Any], found: list[Any], where: tuple[str, ...], /) -> list[Any]:
    """The leaves of a model with every `Assigned` of `found` in place, at all places of a tie.

    Raises:
        ValueError: `Assigned` stands where there is no tensor, or has another shape.
    """
    new: dict[int, Tensor] = {}
    for path, x, a in zip(where, leaves, found, strict=True):
        if isinstance(a, Assigned):
            if not isinstance(x, Tensor) or a.value.shape != x.shape:
                have = f"the shape {tuple(x.shape)}" if isinstance(x, Tensor) else repr(x)
                raise ValueError(
                    f"{path} is assigned a tensor of shape {tuple(a.value.shape)}, the model has {have} "
                    "there: was it made of another model? One made under vmap over examples can't update "
                    "a model, so reduce its batch axis first"
                )
            if a.value.dtype != x.dtype or a.value.device != x.device:
                raise ValueError(
                    f"{path} is assigned a tensor of {a.value.dtype} on {a.value.device}, the model has "
                    f"{x.dtype} on {x.device}; cast or move the gradients as the model was"
                )
            new[id(x)] = a.value
    return [new.get(id(x), x) for x in leaves] if new else leaves
