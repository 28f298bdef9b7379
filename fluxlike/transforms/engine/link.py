"""One node of autograd whose derivative is given by a rule, at every level of functorch too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fluxlike._private import functorch

__all__ = ["MappableRule", "Rule", "link"]

Axes = Sequence[int | None]


class Rule(Protocol):
    """The derivative of a function whose value is known. It may be asked several times, at any level."""

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """The cotangents of the inputs, of those of the outputs; None for zero."""

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Sequence[Tensor]:
        """The tangents of the outputs, of those of the inputs; None for zero."""


@runtime_checkable
class MappableRule(Rule, Protocol):
    """A rule that knows the derivative of its function mapped by ``vmap``.

    That of any other rule is its own, mapped: it takes the gradient for each member, and adds them up.
    """

    def mapped(self, randomness: str, axes: Axes, output_axes: Axes) -> Rule:
        """The rule of the mapped function; inputs and outputs have an axis more, or None for none."""


def link(rule: Rule, outputs: Sequence[Tensor], inputs: Sequence[Tensor], /) -> tuple[Tensor, ...]:
    """The outputs, differentiable with respect to the inputs by a rule.

    Args:
        rule: the derivative.
        outputs: floating or complex tensors, from which nothing is to be differentiated as they are.
        inputs: all tensors that the rule needs.
    """
    node = _Link if functorch.active() else _PlainLink
    return node.apply(rule, len(outputs), *outputs, *inputs)


class _Derivative(torch.autograd.Function):
    """What asks the rule."""

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        before = 2 + ctx.count
        # A level may have closed since the forward pass; operations see through its wrappers, rules do not.
        inputs = [functorch.unwrap_dead(x) for x in ctx.saved_tensors]
        given = [None if c is None else functorch.unwrap_dead(c) for c in cotangents]
        found = ctx.rule.backward(inputs, given, ctx.needs_input_grad[before:])
        return *[None] * before, *found

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        # The saved tensors have their tangents of this level still; those of levels further out stay.
        with functorch.forward_mode(True):
            inputs = [forward_ad.unpack_dual(x).primal for x in ctx.saved_tensors]
            return tuple(ctx.rule.forward_mode(inputs, tangents[2 + ctx.count :]))


class _Link(_Derivative):
    """A node at the levels of functorch."""

    @staticmethod
    def forward(rule: Rule, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(y.detach() for y in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(ctx, *inputs)

    @staticmethod
    def vmap(info: Any, axes: tuple[Any, ...], rule: Rule, count: int, *tensors: Tensor) -> Any:
        output_axes, input_axes = axes[2 : 2 + count], axes[2 + count :]
        if isinstance(rule, MappableRule):
            mapped = rule.mapped(info.randomness, input_axes, output_axes)
        else:
            mapped = _Mapped(rule, info, input_axes, output_axes)
        return link(mapped, tensors[:count], tensors[count:]), output_axes


class _PlainLink(_Derivative):
    """A node of autograd alone, which takes a tenth of the time."""

    @staticmethod
    def forward(ctx: Any, rule: Rule, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        _save(ctx, rule, count, *tensors)
        return tuple(y.detach() for y in tensors[:count])


def _save(ctx: Any, rule: Rule, count: int, *tensors: Tensor) -> None:
    ctx.rule, ctx.count = rule, count
    ctx.save_for_backward(*tensors[count:])
    ctx.save_for_forward(*tensors[count:])
    ctx.set_materialize_grads(False)


class _Mapped:
    """A rule for every member of a ``vmap``."""

    def __init__(self, rule: Rule, info: Any, axes: Axes, output_axes: Axes) -> None:
        self._rule, self._axes, self._output_axes = rule, tuple(axes), tuple(output_axes)
        self._size, self._randomness = info.batch_size, info.randomness

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        reached: list[bool] = []

        def member(inputs: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
            left = iter(given)
            full = [None if c is None else next(left) for c in cotangents]
            found = self._rule.backward(inputs, full, needed)
            reached[:] = [g is not None for g in found]
            return [torch.zeros(()), *[g for g in found if g is not None]]  # vmap asks for at least one

        pairs = zip(cotangents, self._output_axes, strict=True)
        given = [
            (c, axis) if axis is not None else (self._of_first(c), 0) for c, axis in pairs if c is not None
        ]
        run = torch.func.vmap(
            member, (self._axes, tuple(axis for _, axis in given)), randomness=self._randomness
        )
        left = iter(run(tuple(inputs), tuple(c for c, _ in given))[1:])
        result: list[Tensor | None] = []
        for axis, one in zip(self._axes, reached, strict=True):
            g = next(left) if one else None
            result.append(None if g is None else g.sum(0) if axis is None else g.movedim(0, axis))
        return result

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        def member(inputs: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
            left = iter(given)
            return list(
                self._rule.forward_mode(inputs, [None if t is None else next(left) for t in tangents])
            )

        given = [(t, axis) for t, axis in zip(tangents, self._axes, strict=True) if t is not None]
        run = torch.func.vmap(
            member, (self._axes, tuple(axis for _, axis in given)), randomness=self._randomness
        )
        found = run(tuple(inputs), tuple(t for t, _ in given))
        pairs = zip(found, self._output_axes, strict=True)
        return [t[0] if axis is None else t.movedim(0, axis) for t, axis in pairs]

    def _of_first(self, c: Tensor) -> Tensor:
        """The cotangent of an output that all members share, as the first member's alone."""
        return torch.cat([c[None], c.new_zeros(self._size - 1, *c.shape)])
