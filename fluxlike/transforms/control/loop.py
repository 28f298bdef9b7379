"""A loop over flat lists of tensors as one recorded operation, with its backward pass as another.

Forward, the body is recorded once. Backward, the loop runs in reverse over the carries that the forward
loop kept, and each turn runs the body again to differentiate it, as `checkpoint` would. That turn is the
body of a loop like any other, so gradients of gradients need nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import higher_order
from fluxlike.transforms.control.recorded import Body, Derivative, can_be_trained, examples
from fluxlike.transforms.link import link

__all__ = ["loop"]

#: From the carry and one x to the next carry and what to stack.
Step = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]


def loop(step: Step, carry: Sequence[Tensor], xs: Sequence[Tensor], /) -> tuple[list[Tensor], list[Tensor]]:
    """Run a step along the first axis of tensors.

    Args:
        step: what it closes over is differentiated too.
        carry: the first carry.
        xs: at least one tensor.

    Returns:
        The last carry, and what the step returned beside it, stacked.

    Raises:
        Unrecordable: the step can't be run again for the backward pass, since it draws from torch's
            generators, or gives what it closes over to a function with a gradient of its own.
    """
    carry, xs = [x.contiguous() for x in carry], [x.contiguous() for x in xs]
    count = len(carry)
    rows = [x[0] for x in xs]

    def flat(tensors: list[Tensor]) -> list[Tensor]:
        new, ys = step(tensors[:count], tensors[count:])
        return [*new, *ys]

    trained, depends = _trained(flat, carry, rows)
    slices = examples([*carry, *rows], trained)
    body = Body(lambda tensors: [*flat(tensors), *(x.clone() for x in tensors[:count])], slices)
    closed_over = body.closed_over
    body.close(closed_over)
    body.require_repeatable(any(depends))
    if any(depends):
        derivative = Derivative(flat, closed_over, [*trained, *can_be_trained(closed_over)])
        derivative.require_complete(slices)
    else:
        body.keep(len(depends))  # without the carries
    with torch.no_grad():
        found = higher_order.scan(body.graph, carry, xs, closed_over)
    out, carries = found[: len(depends)], found[len(depends) :]
    if any(depends):
        numbers = [i for i, y in enumerate(depends) if y]
        rule = _Backward(step, derivative, numbers, (count, len(xs), len(closed_over)))
        linked = link(rule, [out[i] for i in numbers], [*carry, *xs, *closed_over, *carries])
        for i, y in zip(numbers, linked, strict=True):
            out[i] = y
    return out[:count], out[count:]


def _trained(
    flat: Callable[[list[Tensor]], list[Tensor]], carry: Sequence[Tensor], rows: Sequence[Tensor]
) -> tuple[list[bool], list[bool]]:
    """Which inputs of a turn are differentiated, in any turn, and which outputs depend on such."""
    trained = [*can_be_trained(carry), *can_be_trained(rows)]
    while True:
        with higher_order.unrecorded():
            depends = can_be_trained(flat(examples([*carry, *rows], trained)))
        more = [a or b for a, b in zip(trained, depends, strict=False)][: len(carry)]
        if more == trained[: len(carry)]:
            return trained, depends
        trained[: len(carry)] = more


class _Backward:
    """The derivative of a loop."""

    def __init__(
        self, step: Step, derivative: Derivative, outputs: Sequence[int], sizes: tuple[int, int, int]
    ) -> None:
        self._step, self._derivative, self._outputs, self._sizes = step, derivative, outputs, sizes

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        n, m, k = self._sizes
        carry, xs, closed_over, carries = _split(inputs, n, m, k)
        if torch.is_grad_enabled():  # as functions of the inputs, to be differentiated again
            _, carries = loop(lambda c, x: (self._step(c, x)[0], [v.clone() for v in c]), carry, xs)
        given = {i: g for i, g in zip(self._outputs, cotangents, strict=True) if g is not None}
        active, reached = self._reach([*carry, *(x[0] for x in xs)], closed_over, set(given))
        of_carry, of_ys = [i for i in active if i < n], [i for i in active if i >= n]
        of_xs = [i for i in reached if n <= i < n + m and needed[i]]
        of_rest = [i for i in reached if n + m <= i and needed[i]]

        def turn(grads: list[Tensor], row: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            to_carry, sums = grads[: len(of_carry)], grads[len(of_carry) :]
            values, to_ys = row[: n + m], row[n + m :]
            coming = dict(zip([*of_carry, *of_ys], [*to_carry, *to_ys], strict=True))
            found = self._derivative.pull(values, closed_over, coming, [*of_carry, *of_xs, *of_rest])
            by_carry, by_xs, by_rest = _split(found, len(of_carry), len(of_xs))
            return [*by_carry, *(a + b for a, b in zip(sums, by_rest, strict=True))], by_xs

        start = [given[i] if i in given else torch.zeros_like(carry[i]) for i in of_carry]
        start += [torch.zeros_like(inputs[i]) for i in of_rest]
        rows = [*carries, *xs, *(given[i] for i in of_ys)]
        last, by_xs = loop(turn, start, [x.flip(0) for x in rows])
        result: list[Tensor | None] = [None] * len(inputs)
        for i, g in zip([*of_carry, *of_rest], last, strict=True):
            result[i] = g if i in reached else None
        for i, g in zip(of_xs, by_xs, strict=True):
            result[i] = g.flip(0)
        return result

    def _reach(
        self, values: Sequence[Tensor], closed_over: Sequence[Tensor], given: set[int]
    ) -> tuple[list[int], list[int]]:
        """Which outputs of a turn have a cotangent, in any turn, and which inputs these depend on."""
        with higher_order.unrecorded():
            depends = self._derivative.dependence(examples(values), examples(closed_over))
            active = set(given)
            while True:
                reached = depends(active)
                more = {i for i in reached if i < self._sizes[0]} - active
                if not more:
                    return sorted(active), sorted(reached)
                active |= more

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        raise NotImplementedError("a recorded loop has no forward mode; it is unrolled there")


def _split(items: Sequence[Any], *sizes: int) -> list[Any]:
    parts, start = [], 0
    for size in sizes:
        parts.append(items[start : start + size])
        start += size
    return [*parts, items[start:]]
