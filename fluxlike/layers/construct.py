"""Making a layer's weight: what its size and its init may be."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from torch import Tensor

from fluxlike.trees.show import value_text

__all__ = ["new_weight", "whole_sizes"]


def new_weight(name: str, init: Callable[[Sequence[int]], Tensor], shape: tuple[Any, ...]) -> Tensor:
    """The weight of a layer, made by its init.

    Raises:
        TypeError: sizes that are no whole numbers, or an init that makes no floating tensor of a shape.
        ValueError: a negative size, or an init that makes another shape.
    """
    sizes = whole_sizes(name, shape)
    if getattr(init, "__module__", None) == "torch.nn.init":
        raise TypeError(
            f"{name}: {init.__name__} fills a tensor in place, and init= takes a function of a shape; write "
            f"init=lambda shape: torch.nn.init.{init.__name__}(torch.empty(shape)), or one of fluxlike.init"
        )
    if not callable(init):
        raise TypeError(
            f"{name}: init={value_text(init)} can't be called; write a function of a shape, such as "
            f"init=lambda shape: torch.full(shape, {value_text(init) if isinstance(init, Real) else 0.25})"
        )
    weight = init(sizes)
    if not isinstance(weight, Tensor) or not (weight.is_floating_point() or weight.is_complex()):
        found = value_text(weight) if isinstance(weight, Tensor) else type(weight).__name__
        raise TypeError(
            f"{name}: init={value_text(init)} made {found} of the shape {sizes}, which can't be trained; it "
            "takes a shape and returns a floating tensor, as those of fluxlike.init do"
        )
    if tuple(weight.shape) != sizes:
        raise ValueError(
            f"{name}: init={value_text(init)} made a tensor of shape {tuple(weight.shape)}, asked for {sizes}"
        )
    return weight


def whole_sizes(name: str, shape: Sequence[Any]) -> tuple[int, ...]:
    """The sizes of a tensor of a layer, as Python's ints.

    Raises:
        TypeError: sizes that are no whole numbers.
        ValueError: a negative size.
    """
    return tuple(_size(name, tuple(shape), n) for n in shape)


def _size(name: str, shape: tuple[Any, ...], n: Any) -> int:
    among = f" among {shape}" if len(shape) > 1 else ""
    try:
        size = operator.index(n)
    except TypeError:
        raise TypeError(f"{name}: sizes are whole numbers, found {n!r}{among}") from None
    if size < 0:
        raise ValueError(f"{name}: sizes are not negative, found {n!r}{among}")
    return size
