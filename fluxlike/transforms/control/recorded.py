"""Functions of flat lists of tensors, recorded and differentiated inside a trace."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch, higher_order
from fluxlike.scope import assigned, seeded
from fluxlike.scope.autocast import autocast_now
from fluxlike.transforms.engine.captured import Replacing
from fluxlike.transforms.engine.motors import Motor, Nested, open_motor
from fluxlike.trees.leaves import can_train

__all__ = [
    "Body",
    "Derivative",
    "Flat",
    "Unrecordable",
    "can_be_trained",
    "examples",
    "in_memory_of_their_own",
]

#: From tensors to tensors.
Flat = Callable[[list[Tensor]], list[Tensor]]


class Unrecordable(Exception):
    """What was to be one operation can't be; the caller writes its parts into the trace instead."""


def examples(values: Sequence[Tensor], trained: Sequence[bool] | None = None) -> list[Tensor]:
    """Tensors of the same kinds, which are nothing to the trace around; some of them require grad."""
    flags = trained or [False] * len(values)
    with higher_order.unrecorded():
        return [
            x.detach().clone(memory_format=torch.contiguous_format).requires_grad_(flag)
            for x, flag in zip(values, flags, strict=True)
        ]


class Body:
    """A recorded function of tensors.

    Args:
        f: the function.
        inputs: examples of what it takes.

    Attributes:
        graph: its operations, a function of the inputs; once closed, of what `f` closes over too.
        outputs: what it returned while it was recorded.
        closed_over: the tensors that `f` closes over.
    """

    def __init__(self, f: Flat, inputs: Sequence[Tensor]) -> None:
        returned: set[int] = set()

        def record(known: Sequence[Tensor]) -> None:
            def own(*x: Tensor) -> list[Tensor]:
                outputs = self.outputs = f(list(x))
                returned.update(id(y.untyped_storage()) for y in outputs)
                return in_memory_of_their_own(outputs, [*x, *known])

            self.graph, self.closed_over = higher_order.record(own, inputs)

        record(())
        if any(id(x.untyped_storage()) in returned for x in self.closed_over):  # one of them is returned
            record(self.closed_over)

    def close(self, closed_over: Sequence[Tensor]) -> None:
        """Make the tensors that it closes over, and perhaps others, its last inputs."""
        higher_order.lift(self.graph, closed_over)

    def keep(self, count: int) -> None:
        """Drop all outputs but the first."""
        higher_order.keep(self.graph, count)

    def check(self, differentiable: bool) -> None:
        """Raise `Unrecordable` for a function that must not be one operation.

        Where it draws from torch's generators, a second run, for a backward pass, would draw other numbers.
        """
        if higher_order.draws(self.graph) and (differentiable or higher_order.watched()):
            raise Unrecordable
        if not higher_order.fits(self.graph):
            raise Unrecordable


def in_memory_of_their_own(outputs: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The outputs row by row, none of them a view: what one operation may return."""
    taken = {id(x.untyped_storage()): x for x in inputs}
    result = []
    for y in outputs:
        y = y.contiguous()
        if id(y.untyped_storage()) in taken:
            y = y.clone()
        taken[id(y.untyped_storage())] = y
        result.append(y)
    return result


class Derivative:
    """The derivative of a function, by its inputs and by what it closes over.

    Args:
        f: the function.
        closed_over: the tensors that it closes over.
        trained: which places are differentiated: those of the inputs, and then of the others.
    """

    def __init__(self, f: Flat, closed_over: Sequence[Tensor], trained: Sequence[bool]) -> None:
        self._f, self._closed_over, self._trained = f, list(closed_over), list(trained)
        self._scope = _Scope()

    def pull(
        self,
        inputs: Sequence[Tensor],
        closed_over: Sequence[Tensor],
        cotangents: Mapping[int, Tensor],
        places: Sequence[int],
    ) -> list[Tensor]:
        """The cotangents of some places, of those of some outputs; zeros where nothing arrives."""
        if functorch.active():  # it is mapped, as by a jacobian around what was recorded
            with open_motor() as motor:
                found = self._pulled(motor, inputs, closed_over, cotangents, places)
                return [motor.close(g) for g in found]
        return self._pulled(Nested(torch.is_grad_enabled()), inputs, closed_over, cotangents, places)

    def _pulled(
        self,
        motor: Motor,
        inputs: Sequence[Tensor],
        closed_over: Sequence[Tensor],
        cotangents: Mapping[int, Tensor],
        places: Sequence[int],
    ) -> list[Tensor]:
        values, outputs = self.open(inputs, closed_over, motor)
        found = self.gradients(values, outputs, cotangents, places)
        return [torch.zeros_like(values[i]) if g is None else g for i, g in zip(places, found, strict=True)]

    def dependence(
        self, inputs: Sequence[Tensor], closed_over: Sequence[Tensor]
    ) -> Callable[[set[int]], set[int]]:
        """A function from some outputs to the places that they depend on."""
        values, outputs = self.open(inputs, closed_over)
        places = [i for i, trained in enumerate(self._trained) if trained]

        def places_of(chosen: set[int]) -> set[int]:
            ones = {i: torch.ones_like(outputs[i]) for i in chosen}
            found = self.gradients(values, outputs, ones, places, again=True)
            return {i for i, g in zip(places, found, strict=True) if g is not None}

        return places_of

    def require_complete(self, inputs: Sequence[Tensor]) -> None:
        """Raise `Unrecordable` where the function takes what it closes over and nothing can replace it.

        A ``torch.autograd.Function`` takes a tensor itself.
        """
        with higher_order.unrecorded():
            _, outputs = self.open(inputs, examples(self._closed_over))
            themselves = [x for x in self._closed_over if x.requires_grad]
            found = [y for y in outputs if y.requires_grad]
            if themselves and found:
                ones = [torch.ones_like(y) for y in found]
                grads = torch.autograd.grad(found, themselves, ones, allow_unused=True)
                if any(g is not None for g in grads):
                    raise Unrecordable

    def open(
        self, inputs: Sequence[Tensor], closed_over: Sequence[Tensor], motor: Motor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Handles for what is differentiated, and the outputs of the function of them."""
        motor = motor or Nested(torch.is_grad_enabled())
        count = len(inputs)
        with torch.enable_grad():
            values = [
                motor.handle(x) if trained else x.detach()
                for x, trained in zip((*inputs, *closed_over), self._trained, strict=False)
            ]
            given, others = values[:count], values[count:]
            with Replacing(dict(zip(map(id, self._closed_over), others, strict=True))):
                return values, self._scope.run(lambda: self._f(given))

    def gradients(
        self,
        values: Sequence[Tensor],
        outputs: Sequence[Tensor],
        cotangents: Mapping[int, Tensor],
        places: Sequence[int],
        again: bool = False,
    ) -> Sequence[Tensor | None]:
        """The cotangents of some places, of those of some outputs, of what `open` gave; perhaps again."""
        chosen = {i: g for i, g in cotangents.items() if outputs[i].requires_grad}
        if not chosen or not places:
            return [None] * len(places)
        return torch.autograd.grad(
            [outputs[i] for i in chosen],
            [values[i] for i in places],
            list(chosen.values()),
            allow_unused=True,
            create_graph=torch.is_grad_enabled(),
            retain_graph=again or None,
        )


class _Scope:
    """The scope at this moment, to run a function in it again: nothing is assigned, the same is drawn."""

    def __init__(self) -> None:
        self._context = contextvars.copy_context()
        self._frames = assigned.frames_now()
        self._draws = seeded.active()
        self._mark = 0 if self._draws is None else self._draws.mark()
        self._autocast = autocast_now()

    def run(self, f: Callable[[], Any]) -> Any:
        """Run a function in this scope."""
        return self._context.copy().run(self._inside, f)

    def _inside(self, f: Callable[[], Any]) -> Any:
        with ExitStack() as stack:
            stack.callback(assigned.leave, assigned.enter_again(self._frames))
            if self._draws is not None:
                stack.callback(self._draws.rewind, self._draws.mark())
                self._draws.rewind(self._mark)
            stack.enter_context(self._autocast())
            return f()


def can_be_trained(values: Sequence[Tensor]) -> list[bool]:
    """Which tensors a gradient may be asked for."""
    return [torch.is_grad_enabled() and x.requires_grad and can_train(x) for x in values]
