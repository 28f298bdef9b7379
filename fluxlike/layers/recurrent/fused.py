"""torch's kernels as one node of autograd each, and a formula where they have no derivative.

oneDNN and cuDNN run a whole sequence in one kernel. It has no batching rule and no forward mode, cuDNN's no
second derivative. So the first derivative is the kernel's own, and any other that of the formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch, higher_order
from fluxlike.transforms.engine.link import link

__all__ = ["differentiable", "serves"]

#: From tensors to tensors.
Flat = Callable[[Sequence[Tensor]], list[Tensor]]


def serves() -> bool:
    """Whether torch's kernels can be called here: in no transform of functorch, forward mode or trace."""
    return not functorch.in_forward_mode() and not higher_order.recording()


def differentiable(kernel: Flat, formula: Flat, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs of a kernel, differentiable to any order and mapped.

    Args:
        kernel: of the inputs.
        formula: the same function, in operations that have every derivative.
        inputs: all tensors that the two depend on.
    """
    trained = [x.requires_grad for x in inputs]
    if not torch.is_grad_enabled() or not any(trained):
        return kernel(inputs)
    device = inputs[0].device.type
    settings = device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
    rule = _Rule(_under(settings, kernel), _under(settings, formula), trained)
    outputs = rule.run(inputs)
    return list(link(rule, [y.detach() for y in outputs], inputs))


def _under(settings: tuple[str, torch.dtype, bool], f: Flat) -> Flat:
    """A function under the autocast of the forward pass, also where the backward pass calls it."""

    def run(tensors: Sequence[Tensor]) -> list[Tensor]:
        device, dtype, enabled = settings
        with torch.autocast(device, dtype, enabled):
            return f(tensors)

    return run


class _Rule:
    """The derivative of a kernel.

    Autograd's graph of the kernel is used up by the first backward pass, as it would be without a rule.
    """

    def __init__(self, kernel: Flat, formula: Flat, trained: Sequence[bool]) -> None:
        self._kernel, self._formula, self._trained = kernel, formula, trained
        self._graph: tuple[list[Tensor], list[Tensor]] | None = None

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Call the kernel, and keep its graph."""
        with torch.enable_grad():
            handles = [x.detach().requires_grad_(t) for x, t in zip(inputs, self._trained, strict=True)]
            outputs = self._kernel(handles)
        self._graph = handles, outputs
        return outputs

    def backward(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], needed: Sequence[bool]
    ) -> list[Tensor | None]:
        places = [i for i, need in enumerate(needed) if need]
        if functorch.active():
            found: Sequence[Tensor | None] = self._mapped(inputs, cotangents, places)
        elif torch.is_grad_enabled():
            handles = [x.view_as(x) if need else x for x, need in zip(inputs, needed, strict=True)]
            found = _pull(handles, self._formula(handles), cotangents, places)
        else:
            if self._graph is None:
                self.run(inputs)
            assert self._graph is not None
            (handles, outputs), self._graph = self._graph, None
            found = _pull(handles, outputs, cotangents, places)
        of_place = dict(zip(places, found, strict=True))
        return [of_place.get(i) for i in range(len(inputs))]

    def _mapped(
        self, inputs: Sequence[Tensor], cotangents: Sequence[Tensor | None], places: Sequence[int]
    ) -> Sequence[Tensor | None]:
        given = [g for g in cotangents if g is not None]

        def chosen(*values: Tensor) -> list[Tensor]:
            new = dict(zip(places, values, strict=True))
            outputs = self._formula([new.get(i, x) for i, x in enumerate(inputs)])
            return [y for y, g in zip(outputs, cotangents, strict=True) if g is not None]

        back: Any = torch.func.vjp(chosen, *(inputs[i] for i in places))[1]
        return back(given)

    def forward_mode(self, inputs: Sequence[Tensor], tangents: Sequence[Tensor | None]) -> list[Tensor]:
        raise NotImplementedError("forward mode computes the formula, not the kernel")


def _pull(
    handles: Sequence[Tensor],
    outputs: Sequence[Tensor],
    cotangents: Sequence[Tensor | None],
    places: Sequence[int],
) -> Sequence[Tensor | None]:
    """The cotangents of some handles, of those of the outputs; differentiable where grad mode is on."""
    pairs = [(y, g) for y, g in zip(outputs, cotangents, strict=True) if g is not None]
    return torch.autograd.grad(
        [y for y, _ in pairs],
        [handles[i] for i in places],
        [g for _, g in pairs],
        allow_unused=True,
        create_graph=torch.is_grad_enabled(),
    )
