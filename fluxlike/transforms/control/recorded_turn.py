"""What a trace knows of one turn of a loop: its graph, its derivative, and which tensors these are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from fluxlike._private import higher_order
from fluxlike._private.joint import Joint, divide
from fluxlike.transforms.control.recorded import (
    Body,
    Derivative,
    Flat,
    can_be_trained,
    examples,
    in_memory_of_their_own,
)

__all__ = ["RecordedTurn", "split"]


class RecordedTurn:
    """A turn, recorded.

    Its inputs are the carry, one x of each of the xs, and what it closes over, which is the same in every
    turn; places are counted in this order. Its outputs are the next carry and what is stacked.

    Args:
        f: the turn, of the carry and the xs.
        carry: the first carry.
        rows: the first of each of the xs.

    Attributes:
        count: the number of carries.
        depends: which outputs are differentiated.
        forward: the graph of the turn.
        backward: the graph of the derivative, of the cotangents of the carry and sums, some xs, what was
            kept, the cotangents of what is stacked, and what is the same; None where the turn has to run
            again, of the carries, which are kept then.
        taken: which xs it takes.
        kept: which outputs of `forward` it takes, or else the carries.
        same: what the turn closes over.
        of_carry: the places of the carry that are differentiated; `of_xs` and `of_same` likewise.

    Raises:
        Unrecordable: as `loop`.
    """

    def __init__(self, f: Flat, carry: Sequence[Tensor], rows: Sequence[Tensor]) -> None:
        n = self.count = len(carry)
        self._rows = len(rows)
        trained, self.depends = _trained(f, carry, rows)
        differentiable = any(self.depends)
        slices = examples([*carry, *rows], trained)
        body = Body(lambda x: [*f(x), *(c.clone() for c in x[:n])], slices)
        body.check(differentiable)
        self.same = body.closed_over
        trained += can_be_trained(self.same)
        places = [i for i, t in enumerate(trained) if t]
        self.of_carry = [i for i in places if i < n]
        self.of_xs = [i for i in places if n <= i < n + len(rows)]
        self.of_same = [i for i in places if n + len(rows) <= i]
        self.backward: GraphModule | None = None
        self.taken, self.kept = list[int](), list[int]()
        if differentiable:
            self.derivative = Derivative(f, self.same, trained)
            self.derivative.require_complete(slices)
            if self._divide(slices, body):
                return
        body.close(self.same)
        if differentiable:
            self.kept = [len(self.depends) + i for i in range(n)]
        else:
            body.keep(len(self.depends))  # without the carries
        self.forward = body.graph

    @property
    def linked(self) -> list[int]:
        """The numbers of the outputs that are differentiated."""
        return [i for i, depends in enumerate(self.depends) if depends]

    @property
    def by_stacked(self) -> list[int]:
        """Those of them that are stacked."""
        return [i for i in self.linked if i >= self.count]

    def split(self, items: Sequence[Any]) -> list[Any]:
        """Inputs by kind: the carry, xs, what is the same, and whatever follows."""
        return split(items, self.count, self._rows, len(self.same))

    def _divide(self, slices: Sequence[Tensor], body: Body) -> bool:
        """Record the turn together with its derivative and divide them; whether that is possible."""
        closed_over = examples(self.same)
        kinds = [
            slices[: self.count],
            slices[self.count :],
            examples([[*slices, *closed_over][i] for i in [*self.of_carry, *self.of_same]]),
            examples([body.outputs[i] for i in self.by_stacked]),
            closed_over,
        ]
        forward: set[str] = set()

        def joint(*tensors: Tensor) -> list[Tensor]:
            carry, xs, coming, by_stacked, same = split(tensors, *map(len, kinds[:-1]))
            values, outputs = self.derivative.open([*carry, *xs], same)
            owned = in_memory_of_their_own(outputs, tensors)
            forward.update(higher_order.names())
            by_carry, sums = coming[: len(self.of_carry)], coming[len(self.of_carry) :]
            cotangents = dict(zip([*self.of_carry, *self.by_stacked], [*by_carry, *by_stacked], strict=True))
            cotangents = {i: g for i, g in cotangents.items() if self.depends[i]}
            places = [*self.of_carry, *self.of_same, *self.of_xs]
            found = self.derivative.gradients(values, outputs, cotangents, places)
            found = [
                torch.zeros_like(values[i]) if g is None else g for i, g in zip(places, found, strict=True)
            ]
            to_carry, to_same, to_xs = split(found, len(self.of_carry), len(self.of_same))
            added = [a + b for a, b in zip(sums, to_same, strict=True)]
            return [*owned, *(g.contiguous() for g in (*to_carry, *added, *to_xs))]

        graph, more = higher_order.record(joint, [x for kind in kinds for x in kind])
        higher_order.lift(graph, more)
        parts = divide(Joint(graph, forward, [len(kind) for kind in kinds], len(self.depends)))
        if parts is None:
            return False
        self.forward, self.backward, self.taken, self.kept = parts
        self.same = [*self.same, *more]
        return True


def split(items: Sequence[Any], *sizes: int) -> list[Any]:
    """Parts of some sizes, and what is left."""
    parts, start = [], 0
    for size in sizes:
        parts.append(items[start : start + size])
        start += size
    return [*parts, items[start:]]


def _trained(f: Flat, carry: Sequence[Tensor], rows: Sequence[Tensor]) -> tuple[list[bool], list[bool]]:
    """Which inputs of a turn are differentiated, in any turn, and which outputs depend on such."""
    trained = [*can_be_trained(carry), *can_be_trained(rows)]
    while True:
        with higher_order.unrecorded():
            depends = can_be_trained(f(examples([*carry, *rows], trained)))
        more = [a or b for a, b in zip(trained, depends, strict=False)][: len(carry)]
        if more == trained[: len(carry)]:
            return trained, depends
        trained[: len(carry)] = more
