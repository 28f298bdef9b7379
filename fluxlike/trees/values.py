"""Reading an `nn.Parameter` as its value, outside of every transform."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

__all__ = ["inside_transform", "value_of"]

#: Whether a transform surrounds the call: inside one, tensors that require grad are its handles.
#: The floor of transforms puts its own test in.
inside_transform: list[Callable[[], bool]] = []


def value_of(x: Tensor, /) -> Tensor:
    """The tensor, without a graph if it is a parameter of torch's that starts one.

    A leaf of autograd that requires grad is read as its value; one that was computed stays
    differentiable, and inside a transform everything does.
    """
    if x.requires_grad and x.grad_fn is None and not any(inside() for inside in inside_transform):
        return x.detach()
    return x
