"""A loop over flat lists of tensors as one recorded operation, with its backward pass as another.

The turn is recorded together with its derivative and divided: forward, the loop keeps what the derivative
takes, as autograd would; backward, it runs in reverse. Where that is not possible, or the gradient is to
be differentiated again, the backward loop runs each turn once more, of the carries that were kept. That
turn is the body of a loop like any other, so gradients of gradients need nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fluxlike._private import functorch, higher_order
from fluxlike.transforms.control.recorded import examples
from fluxlike.transforms.control.recorded_turn import RecordedTurn, split
from fluxlike.transforms.engine.link import link

__all__ = ["loop"]

#: From the carry and one x to the next carry and what to stack.
Step = Callable[[list[Tensor], list[Tensor]], tuple[list[Tensor], list[Tensor]]]


def _written_out(step: Step, carry: list[Tensor], xs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The turns one by one: functorch maps no recorded loop."""
    stacked: list[list[Tensor]] = []
    for row in zip(*(x.unbind(0) for x in xs), strict=True):
        carry, ys = step(carry, list(row))
        stacked.append(ys)
    return carry, [torch.stack(y) for y in zip(*stacked, strict=True)]


def loop(step: Step, carry: Sequence[Tensor], xs: Sequence[Tensor], /) -> tuple[list[Tensor], list[Tensor]]:
    """Run a step along the first axis of tensors.

    Args:
        step: what it closes over is differentiated too.
        carry: the first carry.
        xs: at least one tensor.

    Returns:
        The last carry, and what the step returned beside it, stacked.

    Raises:
        Unrecordable: the step can't be one operation: it computes with complex numbers; or it can't be run
            again for the backward pass, since it draws from torch's generators, or gives what it closes
            over to a function with a gradient of its own.
    """
    if functorch.active():
        return _written_out(step, list(carry), xs)
    carry, xs = [x.contiguous() for x in carry], [x.contiguous() for x in xs]
    count = len(carry)

    def turn(tensors: list[Tensor]) -> list[Tensor]:
        new, ys = step(tensors[:count], tensors[count:])
        return [*new, *ys]

    recorded = RecordedTurn(turn, carry, [x[0] for x in xs])
    if not recorded.depends:
        return [], []
    with torch.no_grad():
        found = higher_order.scan(recorded.forward, carry, xs, recorded.same)
    out, kept = found[: len(recorded.depends)], [found[i] for i in recorded.kept]
    if recorded.linked:
        outputs = [out[i] for i in recorded.linked]
        linked = link(_Backward(step, recorded, outputs), outputs, [*carry, *xs, *recorded.same, *kept])
        for i, y in zip(recorded.linked, linked, strict=True):
            out[i] = y
    return out[:count], out[count:]


class _Backward:
    """The derivative of a loop."""

    def __init__(self, step: Step, recorded: RecordedTurn, outputs: Sequence[Tensor]) -> None:
        self._step, self._recorded = step, recorded
        kinds = [(y.shape, y.dtype, y.device) for y in outputs]
        self._kinds = dict(zip(recorded.linked, kinds, strict=True))

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        recorded = self._recorded
        given = {i: g for i, g in zip(recorded.linked, cotangents, strict=True) if g is not None}
        reached, active = self._reach(inputs, set(given))
        if recorded.backward is not None and not torch.is_grad_enabled() and not functorch.active():
            found = self._divided(inputs, given)
        else:
            found = self._again(inputs, given, active, [i for i in reached if needed[i]])
        return [found.get(i) if i in reached and need else None for i, need in enumerate(needed)]

    def _divided(self, inputs: Sequence[Tensor], given: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """The cotangents by place, by the graph of the derivative."""
        recorded = self._recorded
        _, xs, same, kept = recorded.split(inputs)
        start = [given[i] if i in given else torch.zeros_like(inputs[i]) for i in recorded.of_carry]
        start += [torch.zeros_like(inputs[i]) for i in recorded.of_same]
        by_stacked = [given[i] if i in given else self._zeros(i) for i in recorded.by_stacked]
        rows = [*(xs[i] for i in recorded.taken), *kept, *by_stacked]
        assert recorded.backward is not None
        found = higher_order.scan(
            recorded.backward, [g.contiguous() for g in start], [x.flip(0) for x in rows], same
        )
        last, by_xs = found[: len(start)], found[len(start) :]
        places = [*recorded.of_carry, *recorded.of_same, *recorded.of_xs]
        return dict(zip(places, [*last, *(g.flip(0) for g in by_xs)], strict=True))

    def _again(
        self, inputs: Sequence[Tensor], given: Mapping[int, Tensor], active: set[int], places: list[int]
    ) -> dict[int, Tensor]:
        """The cotangents of some places, by running each turn again."""
        recorded, n = self._recorded, self._recorded.count
        carry, xs, same, carries = recorded.split(inputs)
        if recorded.backward is not None or torch.is_grad_enabled():
            _, carries = loop(lambda c, x: (self._step(c, x)[0], [v.clone() for v in c]), carry, xs)
        of_carry, of_stacked = sorted(i for i in active if i < n), sorted(i for i in active if i >= n)
        of_xs = [i for i in places if n <= i < n + len(xs)]
        of_same = [i for i in places if n + len(xs) <= i]

        def turn(coming: list[Tensor], row: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            by_carry, sums = coming[: len(of_carry)], coming[len(of_carry) :]
            values, by_stacked = row[: n + len(xs)], row[n + len(xs) :]
            cotangents = dict(zip([*of_carry, *of_stacked], [*by_carry, *by_stacked], strict=True))
            found = recorded.derivative.pull(values, same, cotangents, [*of_carry, *of_same, *of_xs])
            to_carry, to_same, to_xs = split(found, len(of_carry), len(of_same))
            return [*to_carry, *(a + b for a, b in zip(sums, to_same, strict=True))], to_xs

        start = [given[i] if i in given else torch.zeros_like(inputs[i]) for i in of_carry]
        start += [torch.zeros_like(inputs[i]) for i in of_same]
        rows = [*carries, *xs, *(given[i] for i in of_stacked)]
        last, by_xs = loop(turn, start, [x.flip(0) for x in rows])
        return dict(zip([*of_carry, *of_same, *of_xs], [*last, *(g.flip(0) for g in by_xs)], strict=True))

    def _reach(self, inputs: Sequence[Tensor], given: set[int]) -> tuple[set[int], set[int]]:
        """Which inputs of a turn some outputs depend on, and which outputs these are, in any turn."""
        carry, xs, same, _ = self._recorded.split(inputs)
        # The derivative of what was recorded outermost may be mapped, as a jacobian does.
        with functorch.outside(), higher_order.unrecorded():
            values = [*carry, *(x[0] for x in xs)]
            depends = self._recorded.derivative.dependence(examples(values), examples(same))
            active = set(given)
            while True:
                reached = depends(active)
                more = {i for i in reached if i < self._recorded.count} - active
                if not more:
                    return reached, active
                active |= more

    def _zeros(self, output: int) -> Tensor:
        shape, dtype, device = self._kinds[output]
        return torch.zeros(shape, dtype=dtype, device=device)

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        raise NotImplementedError("a recorded loop has no forward mode; it is unrolled there")
