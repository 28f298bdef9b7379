"""The three ways to run one gradient. What encloses the call decides which; the numbers are equal.

Each motor gives the function handles in place of the tensors to differentiate (`handle`) and
aliases in place of the others (`alias`), so that a tensor reached another way, by a closure or
another argument, is a constant. `close` takes results out again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor

from fluxlike._private import autograd, functorch
from fluxlike.trees.values import inside_transform

__all__ = ["Motor", "enclosed", "open_motor"]

_depth: ContextVar[int] = ContextVar("fluxlike_gradient_depth", default=0)


def enclosed() -> bool:
    """Whether a gradient of fluxlike or a transform of functorch surrounds this call."""
    return _depth.get() > 0 or functorch.active()


inside_transform.append(enclosed)


class Motor(Protocol):
    """One way to run a gradient."""

    #: Whether results are plain numbers, so that a float argument can have a float for its gradient.
    concrete: bool

    def handle(self, x: Tensor, /) -> Tensor:
        """The tensor that stands for `x` in the function, differentiable."""

    def alias(self, x: Tensor, /) -> Tensor:
        """Another tensor object with the content of `x`."""

    def constant(self, x: Tensor, /) -> Tensor:
        """`x`, not differentiated by this gradient."""

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> Sequence[Tensor | None]:
        """The gradient of the loss for each handle, None for one that it does not reach."""

    def close(self, x: Tensor, /) -> Tensor:
        """A result, as the caller of the gradient may have it."""


class Outermost:
    """torch's autograd directly, on detached leaves; results carry no graph."""

    concrete = True

    def handle(self, x: Tensor, /) -> Tensor:
        return x.detach().requires_grad_()

    def alias(self, x: Tensor, /) -> Tensor:
        return x.detach()

    def constant(self, x: Tensor, /) -> Tensor:
        return x.detach() if x.requires_grad else x

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> Sequence[Tensor | None]:
        return autograd.grad(loss, handles)

    def close(self, x: Tensor, /) -> Tensor:
        return x.detach() if x.requires_grad else x


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
        return autograd.grad(loss, handles, retain_graph=True, create_graph=self._differentiable)

    def close(self, x: Tensor, /) -> Tensor:
        return x if self._differentiable else x.detach()


class FunctorchLevel:
    """Inside functorch's transforms, fluxlike's or torch's own: one more level of theirs."""

    concrete = False

    def __init__(self, level: int) -> None:
        self._level = level

    def handle(self, x: Tensor, /) -> Tensor:
        return functorch.differentiable(x, self._level)

    def alias(self, x: Tensor, /) -> Tensor:
        return functorch.wrap(x, self._level)

    def constant(self, x: Tensor, /) -> Tensor:
        return x

    def gradients(self, loss: Tensor, handles: Sequence[Tensor], /) -> Sequence[Tensor | None]:
        return autograd.grad(loss, handles, retain_graph=True, create_graph=True)

    def close(self, x: Tensor, /) -> Tensor:
        return functorch.unwrap(x, self._level)


_outermost = Outermost()


class open_motor:
    """The motor for a gradient called here, open inside a ``with`` statement."""

    __slots__ = ("_level", "_token")

    def __enter__(self) -> Motor:
        depth = _depth.get()
        self._token = _depth.set(depth + 1)
        self._level = None
        if functorch.active():
            self._level = functorch.grad_level()
            return FunctorchLevel(self._level.__enter__())
        return Nested(torch.is_grad_enabled()) if depth else _outermost

    def __exit__(self, *error: Any) -> None:
        if self._level is not None:
            self._level.__exit__(*error)
        _depth.reset(self._token)
