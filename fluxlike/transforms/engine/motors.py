"""The three ways to run one gradient. What encloses the call decides which; the numbers are equal.

Each motor gives the function handles in place of the tensors to differentiate (`handle`) and
aliases in place of the others (`alias`), so that a tensor reached another way, by a closure or
another argument, is a constant. `close` takes results out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from fluxlike._private import autograd, functorch
from fluxlike._private.tracing import tracing
from fluxlike.placement.mesh import used
from fluxlike.trees.values import inside_transform

__all__ = [
    "Afterwards", "Closer", "Motor", "at_depth", "derived_again", "differentiated", "enclosed", "one_deeper",
    "open_motor", "Outermost",
]  # fmt: skip

_depth: ContextVar[int] = ContextVar("fluxlike_gradient_depth", default=0)


def enclosed(depth: int = 0) -> bool:
    """Whether more gradients of fluxlike than `depth`, or a transform of functorch, surround this call."""
    return _depth.get() > depth or functorch.active()


inside_transform.append(enclosed)


def differentiated() -> bool:
    """Whether a derivative surrounds this call, of fluxlike or of functorch."""
    return _depth.get() > 0 or functorch.differentiating()


def derived_again() -> bool:
    """Whether derivatives of what is computed here may be differentiated or mapped in turn.

    Kernels of torch with no more than a first derivative in reverse mode serve only where they are not.
    """
    return _depth.get() > 1 or functorch.in_forward_mode()


@contextmanager
def one_deeper() -> Iterator[None]:
    """Let what is computed inside know that its derivatives are mapped."""
    with at_depth(_depth.get() + 1):
        yield


@contextmanager
def at_depth(depth: int, /) -> Iterator[None]:
    """Let gradients inside run as in a number of enclosing ones, 0 for none."""
    token = _depth.set(depth)
    try:
        yield
    finally:
        _depth.reset(token)


class Closer(Protocol):
    """What takes results out of a motor."""

    @property
    def concrete(self) -> bool:
        """Whether results are plain numbers, so that a float argument can have a float for its gradient."""

    def close(self, x: Tensor, /) -> Tensor:
        """A result, as the caller of the gradient may have it."""


class Motor(Closer, Protocol):
    """One way to run a gradient."""

    def handle(self, x: Tensor, /) -> Tensor:
        """The tensor that stands for `x` in the function, differentiable."""

    def alias(self, x: Tensor, /) -> Tensor:
        """Another tensor object with the content of `x`."""

    def constant(self, x: Tensor, /) -> Tensor:
        """`x`, not differentiated by this gradient."""

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> Sequence[Tensor | None]:
        """The gradient of the loss for each handle, None for one that it does not reach."""


def _gradients(loss: Tensor, handles: Sequence[Tensor], **options: bool) -> Sequence[Tensor | None]:
    """What autograd finds; gradients of parameters over a mesh are placed as these are."""
    known = used.mesh()
    if known is None:
        return autograd.grad(loss, handles, **options)
    with known.explaining():
        return known.placed_as(autograd.grad(loss, handles, **options), handles)


def _settled(x: Tensor) -> Tensor:
    """A result that is the same number on every rank."""
    known = used.mesh()
    return x if known is None else known.settled(x)


class Outermost:
    """torch's autograd directly, on detached leaves; results carry no graph."""

    @property
    def concrete(self) -> bool:
        return not tracing()

    def handle(self, x: Tensor, /) -> Tensor:
        return x.detach().requires_grad_()

    def alias(self, x: Tensor, /) -> Tensor:
        return x.detach()

    def constant(self, x: Tensor, /) -> Tensor:
        return x.detach() if x.requires_grad else x

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> Sequence[Tensor | None]:
        return _gradients(loss, handles)

    def close(self, x: Tensor, /) -> Tensor:
        return _settled(x.detach() if x.requires_grad else x)


class Nested:
    """Inside another gradient: autograd again, building the graph that the outer one needs.

    Under ``no_grad`` the caller wants no graph through this gradient, so its results are detached.
    """

    concrete = False

    def __init__(self, differentiable: bool) -> None:
        self._differentiable = differentiable

    def handle(self, x: Tensor, /) -> Tensor:
        if x.requires_grad and self._differentiable:
            return x.view_as(x)
        return x.detach().requires_grad_()

    def alias(self, x: Tensor, /) -> Tensor:
        return x.view_as(x) if x.layout is torch.strided else x.detach()

    def constant(self, x: Tensor, /) -> Tensor:
        return x

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> Sequence[Tensor | None]:
        return _gradients(loss, handles, retain_graph=True, create_graph=self._differentiable)

    def close(self, x: Tensor, /) -> Tensor:
        return x if self._differentiable else x.detach()


class FunctorchLevel:
    """Inside functorch's transforms, fluxlike's or torch's own: one more level of theirs.

    Where they only map, nothing further out needs the graph of the backward pass.
    """

    concrete = False

    def __init__(self, level: int, differentiable: bool) -> None:
        self._level, self._differentiable = level, differentiable

    def handle(self, x: Tensor, /) -> Tensor:
        return functorch.differentiable(self.alias(x))

    def alias(self, x: Tensor, /) -> Tensor:
        if functorch.function_modes() and x.layout is torch.strided:
            return x.view_as(x)  # the same by an operation, which modes see
        return functorch.wrap(x, self._level)

    def constant(self, x: Tensor, /) -> Tensor:
        return x

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> Sequence[Tensor | None]:
        keep = self._differentiable
        return _gradients(loss, handles, retain_graph=keep, create_graph=keep)

    def close(self, x: Tensor, /) -> Tensor:
        return functorch.unwrap(x, self._level)


class Afterwards:
    """Closes what is pulled back after the motor of its forward pass has closed.

    What encloses the pull decides, not what enclosed the forward pass: a pullback made outermost can be
    called, and differentiated by its cotangent, inside another transform.
    """

    def __init__(self) -> None:
        #: Whether results are plain numbers.
        self.concrete = not enclosed() and not tracing()
        #: Whether results are differentiated further out.
        self.differentiable = differentiated() and torch.is_grad_enabled()

    def close(self, x: Tensor, /) -> Tensor:
        x = functorch.unwrap_dead(x)
        return x.detach() if x.requires_grad and not self.differentiable else x


_outermost = Outermost()


class open_motor:
    """The motor for a gradient called here, open inside a ``with`` statement."""

    __slots__ = ("_level", "_token")

    def __enter__(self) -> Motor:
        depth = _depth.get()
        self._token = _depth.set(depth + 1)
        self._level = None
        if functorch.active():
            below = depth > 0 or functorch.differentiating()
            self._level = functorch.grad_level()
            return FunctorchLevel(self._level.__enter__(), below)
        return Nested(torch.is_grad_enabled()) if depth else _outermost

    def __exit__(self, *error: Any) -> None:
        if self._level is not None:
            self._level.__exit__(*error)
        _depth.reset(self._token)
