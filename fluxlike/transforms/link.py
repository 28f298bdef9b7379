"""One node of autograd whose derivative is given by a rule, at every level of functorch too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fluxlike._private import functorch

__all__ = ["Rule", "link"]


class Rule(Protocol):
    """The derivative of a function whose value is known. It may be asked several times, at any level."""

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """The cotangents of the inputs, of those of the outputs; None for zero."""

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> Sequence[Tensor]:
        """The tangents of the outputs, of those of the inputs; None for zero."""


def link(rule: Rule, outputs: Sequence[Tensor], inputs: Sequence[Tensor], /) -> tuple[Tensor, ...]:
    """The outputs, differentiable with respect to the inputs by a rule.

    Args:
        rule: the derivative.
        outputs: floating or complex tensors, from which nothing is to be differentiated as they are.
        inputs: all tensors that the rule needs.
    """
    return _Link.apply(rule, len(outputs), *outputs, *inputs)


class _Link(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(y.detach() for y in tensors[:count])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.rule, ctx.count, *tensors = inputs
        ctx.save_for_backward(*tensors[ctx.count :])
        ctx.save_for_forward(*tensors[ctx.count :])
        ctx.set_materialize_grads(False)

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
