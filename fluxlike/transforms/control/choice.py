"""A choice between two functions of flat lists of tensors as one recorded operation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fluxlike._private import functorch, higher_order
from fluxlike.transforms.control.recorded import Body, Derivative, Flat, can_be_trained, examples
from fluxlike.transforms.engine.link import link

__all__ = ["choose"]


def choose(pred: Tensor, branches: Sequence[Flat], inputs: Sequence[Tensor], /) -> list[Tensor]:
    """Run the first of two functions where a tensor is true, else the second.

    Args:
        pred: a 0-d bool.
        branches: the two functions, which return tensors of the same kinds. What they close over is
            differentiated too.
        inputs: what they take.

    Raises:
        Unrecordable: a branch can't be run again for the backward pass, since it draws from torch's
            generators, or gives what it closes over to a function with a gradient of its own.
    """
    if functorch.active():  # which maps no recorded choice
        outputs = zip(*(branch(list(inputs)) for branch in branches), strict=True)
        return [torch.where(pred, yes, no) for yes, no in outputs]
    inputs = [x.contiguous() for x in inputs]
    trained = can_be_trained(inputs)
    slices = examples(inputs, trained)
    with higher_order.unrecorded():
        each = [can_be_trained(branch(examples(inputs, trained))) for branch in branches]
    depends = [a or b for a, b in zip(*each, strict=True)]
    bodies = [Body(branch, slices) for branch in branches]
    closed_over = list({id(x): x for body in bodies for x in body.closed_over}.values())
    for body in bodies:
        body.close(closed_over)
        body.check(any(depends))
    if any(depends):
        trained += can_be_trained(closed_over)
        derivatives = [Derivative(branch, closed_over, trained) for branch in branches]
        for derivative in derivatives:
            derivative.require_complete(slices)
    with torch.no_grad():
        yes, no = (body.graph for body in bodies)
        out = higher_order.cond(pred, yes, no, [*inputs, *closed_over])
    if any(depends):
        numbers = [i for i, y in enumerate(depends) if y]
        rule = _Backward(derivatives, numbers, len(inputs))
        linked = link(rule, [out[i] for i in numbers], [*inputs, *closed_over, pred])
        for i, y in zip(numbers, linked, strict=True):
            out[i] = y
    return out


class _Backward:
    """The derivative of a choice: that of the branch that is taken."""

    def __init__(self, derivatives: Sequence[Derivative], outputs: Sequence[int], count: int) -> None:
        self._derivatives, self._outputs, self._count = derivatives, outputs, count

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        *values, pred = inputs
        n = self._count
        given = {i: g for i, g in zip(self._outputs, cotangents, strict=True) if g is not None}
        places = [i for i in self._reach(values, set(given)) if needed[i]]

        def pull(derivative: Derivative) -> Flat:
            return lambda tensors: derivative.pull(
                tensors[:n], values[n:], dict(zip(given, tensors[n:], strict=True)), places
            )

        result: list[Tensor | None] = [None] * len(inputs)
        if places:
            found = choose(pred, [pull(d) for d in self._derivatives], [*values[:n], *given.values()])
            for i, g in zip(places, found, strict=True):
                result[i] = g
        return result

    def _reach(self, values: Sequence[Tensor], outputs: set[int]) -> list[int]:
        """The inputs that some outputs depend on, in one branch or the other."""
        # The derivative of what was recorded outermost may be mapped, as a hessian does.
        with functorch.outside(), higher_order.unrecorded():
            slices = examples(values)
            inputs, closed_over = slices[: self._count], slices[self._count :]
            found = [d.dependence(inputs, closed_over)(outputs) for d in self._derivatives]
        return sorted(set().union(*found))

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        raise NotImplementedError("a recorded choice has no forward mode; both branches run there")
