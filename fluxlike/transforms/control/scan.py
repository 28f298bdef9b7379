"""`scan`: a loop with a carry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from fluxlike._private import higher_order, tracing
from fluxlike.scope.branch import Apart
from fluxlike.transforms.control import traced
from fluxlike.transforms.control.form import Form
from fluxlike.transforms.control.turn import Turn

__all__ = ["scan"]


def scan(
    f: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, /, length: int | None = None
) -> tuple[Any, Any]:
    """Loop over the first axis of a tree of tensors: ``carry, y = f(carry, x)`` for every x of xs.

    Eager it is a Python loop. Under `jit` it is recorded as one operation, forward and backward, so that
    its length costs nothing to trace and compile; inside another transform there (`vmap`, forward mode) it
    is unrolled. The numbers are the same. Buffers that a layer assigns go on from turn to turn, and random
    draws of turn i come from the scope's key folded by i.

    Args:
        f: takes the carry and one x, and returns the next carry and what to stack (None for nothing).
            What it closes over is differentiated too.
        carry: any tree. Every turn keeps its structure, shapes, dtypes and constants.
        xs: a tree of tensors with first axes of one length; its constants are the same for every x. A
            `stack` of layers is looped over layer by layer. None, where `length` is given.
        length: the number of turns, where `xs` holds no tensor. (default: that of the first axes)

    Returns:
        ``(carry, ys)``: the last carry, and a tree as `f` returned it with its tensors stacked. With no
        turn at all, `carry` itself and empty stacks, whose shapes are found by one run on zeros.

    Raises:
        ValueError: lengths differ, or none is given; the carry, or what is stacked, changes its form from
            turn to turn. It names the place.
        TypeError: `f` is no function, or does not return a pair.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.scan(lambda total, x: (total + x, total), torch.tensor(0), torch.arange(5))
        (tensor(10), tensor([0, 0, 1, 3, 6]))
        >>> layers = fl.stack([fl.Dense(4, 4, fl.tanh) for _ in range(3)])
        >>> h, _ = fl.scan(lambda h, layer: (layer(h), None), torch.ones(2, 4), layers)
        >>> h.shape
        torch.Size([2, 4])
    """
    if not callable(f):
        raise TypeError(
            f"scan takes a function, a carry and what to loop over, found {type(f).__name__} as the function"
        )
    rows = Form(xs, "xs")
    turns = _length(rows, length)
    turn = Turn(f, Form(carry, "the carry"))
    if turns == 0:
        return turn.carry.fill(turn.carry.tensors), _nothing(turn, rows)
    if turns > 1 and higher_order.recording():
        recorded = traced.scan(turn, rows, turns)
        if recorded is not None:
            return recorded
    now, stacked, drawn = turn.carry.fill(turn.carry.tensors), _Stacked(), 0
    pieces = [x.unbind(0) for x in rows.tensors]
    for i in range(turns):
        now, y = turn(now, rows.fill([piece[i] for piece in pieces]), i)
        stacked.add(y, i)
        drawn += turn.drawn
    turn.finish(drawn)
    return now, stacked.tree()


def _length(rows: Form, length: int | None) -> int:
    """The number of turns."""
    first: tuple[str, int] | None = None
    for path, x in zip(rows.paths, rows.tensors, strict=True):
        place = path or "xs"
        if x.ndim == 0:
            raise ValueError(
                f"scan loops over the first axis, and {place} is a 0-d tensor; close over what is the same "
                "for every turn"
            )
        if first is None:
            first = place, x.shape[0]
        elif x.shape[0] != first[1]:
            raise ValueError(
                f"scan: first axes differ in length: {first[0]} has {first[1]}, {place} has {x.shape[0]}"
            )
    if first is None:
        if length is None:
            raise ValueError("scan: xs holds no tensor to loop over; give length=, the number of turns")
        return length
    if length is not None and length != first[1]:
        raise ValueError(f"scan: length={length}, and {first[0]} has {first[1]} along its first axis")
    return first[1]


class _Stacked:
    """What each turn returned, to be stacked."""

    def __init__(self) -> None:
        self._leaves: list[list[Any]] = []

    def add(self, tree: Any, i: int) -> None:
        if not self._leaves:
            self._form = Form(tree, "of turn 0")
        leaves = self._form.check(tree, f"what turn {i} of scan returned to stack", _STACK)
        self._form.untie(leaves)
        self._leaves.append(leaves)

    def tree(self) -> Any:
        columns = zip(*map(self._form.tensors_of, self._leaves), strict=True)
        return self._form.fill([torch.stack(column) for column in columns])


_STACK = "every turn returns the same form: make a number that changes a tensor"


def _nothing(turn: Turn, rows: Form) -> Any:
    """The empty stacks of no turn, of the shapes that a turn would give."""
    zeros = [x.new_zeros(x.shape[1:]) for x in rows.tensors]
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    quiet = nullcontext() if tracing.tracing() else torch.random.fork_rng(devices)
    with Apart(), torch.no_grad(), quiet:
        _, y = turn(turn.carry.fill(turn.carry.tensors), rows.fill(zeros), 0)
    turn.finish(0)
    form = Form(y, "")
    return form.fill([x.new_zeros((0, *x.shape)) for x in form.tensors])
