"""`scan` inside a trace: trees become lists of tensors, and what is assigned is carried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import higher_order
from fluxlike.scope.assigned import assign, current, derive
from fluxlike.scope.branch import Apart
from fluxlike.transforms.control.form import Form
from fluxlike.transforms.control.loop import loop
from fluxlike.transforms.control.recorded import Unrecordable, examples
from fluxlike.transforms.control.turn import Turn
from fluxlike.trees.structure import flatten

__all__ = ["derive_all", "scan"]


def scan(turn: Turn, rows: Form, turns: int) -> tuple[Any, Any] | None:
    """The loop as one operation of the trace; None where it has to be unrolled."""
    steps = _Steps(turn, rows)
    steps.look()
    try:
        carry, ys = loop(steps, steps.first(), [*rows.tensors, torch.arange(turns)])
    except Unrecordable:
        return None
    turn.finish(turns * turn.drawn)
    moving, buffers = steps.split(carry)
    for buffer, value in zip(steps.moved, buffers, strict=True):
        assign(buffer, value)
    return steps.fill(moving), steps.stacked.fill(ys)


class _Steps:
    """A turn of a loop as a step from tensors to tensors.

    Of the carry, what every turn hands on as it is stays outside of the loop. Buffers that a turn assigns
    are carried too, after the tensors of the user's.

    Attributes:
        moved: these buffers.
        stacked: the form of what is stacked.
    """

    stacked: Form

    def __init__(self, turn: Turn, rows: Form) -> None:
        self._turn, self._rows = turn, rows
        self._moves: list[bool] = []
        self.moved: list[Tensor] = []

    def look(self) -> None:
        """Find out what is carried, from runs that leave no trace."""
        form, rows = self._turn.carry, self._rows.tensors
        again = True
        while again:
            given = examples(form.tensors)
            with higher_order.unrecorded(), Apart() as apart, torch.no_grad():
                derive_all(given, form.tensors)
                x = self._rows.fill(examples([x[0] for x in rows]))
                _, y = self._turn(form.fill(given), x, torch.tensor(0))
            again = form.untie(self._turn.leaves)
        self._moves = [a is not b for a, b in zip(form.tensors_of(self._turn.leaves), given, strict=True)]
        self.moved = [buffer for buffer, _ in apart.assigned()]
        self.stacked = Form(y, "")

    def first(self) -> list[Tensor]:
        """The first carry."""
        return [*self._moving(self._turn.carry.tensors), *map(current, self.moved)]

    def _moving(self, tensors: list[Tensor]) -> list[Tensor]:
        return [x for x, moves in zip(tensors, self._moves, strict=True) if moves]

    def fill(self, moving: list[Tensor]) -> Any:
        """The carry as a tree, of what the loop carries."""
        fresh = iter(moving)
        form = self._turn.carry
        return form.fill([next(fresh) if m else x for x, m in zip(form.tensors, self._moves, strict=True)])

    def split(self, carry: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors of the user's carry that move, and the buffers."""
        count = sum(self._moves)
        return carry[:count], carry[count:]

    def __call__(self, carry: list[Tensor], x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        moving, buffers = self.split(carry)
        with Apart() as apart:
            for buffer, value in zip(self.moved, buffers, strict=True):
                apart.put(buffer, value.detach())
            _, y = self._turn(self.fill(moving), self._rows.fill(x[:-1]), x[-1])
        newest = {id(buffer): value for buffer, value in apart.assigned()}
        buffers = [newest.get(id(b), value) for b, value in zip(self.moved, buffers, strict=True)]
        new = self._moving(self._turn.carry.tensors_of(self._turn.leaves))
        return [*new, *buffers], self.stacked.tensors_of(flatten(y)[0])


def derive_all(new: Sequence[Tensor], old: Sequence[Tensor]) -> None:
    """Say that tensors stand for others, so that what is assigned to them is assigned to those."""
    for a, b in zip(new, old, strict=True):
        derive(a, b)
