"""Layers one after another: Chain, and SkipConnection, a way around some."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fluxlike.layers.checks import require_callable
from fluxlike.layers.errors import fail
from fluxlike.layers.steps import Steps, refuse_attribute
from fluxlike.trees.adopt import adopted
from fluxlike.trees.functor import functor

__all__ = ["Chain", "SkipConnection"]


@functor(children=("layers",))
class Chain(Steps):
    """Layers in a row: each gets the output of the one before.

    Args:
        layers: layers, or any other callables.
        named: layers by name, instead of `layers`.

    Attributes:
        layers: the layers, a tuple.
        names: the names of the layers, or None.

    Raises:
        TypeError: a step that is not callable, or named and unnamed layers mixed.
        AttributeError: an attribute is set: a Chain is never changed in place. A subclass may have its own.
        LayerError: from a call: a layer failed. It names the layer's path and what it got.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Dense(4, 8, fl.relu), fl.Dense(8, 2), fl.softmax)
        >>> model(torch.zeros(3, 4)).shape
        torch.Size([3, 2])
        >>> model
        Chain(
          Dense(4, 8, relu),  # 40 parameters
          Dense(8, 2),        # 18 parameters
          softmax,
        )                     # Total: 4 tensors, 58 parameters, 232 bytes
        >>> model[:2]
        Chain(
          Dense(4, 8, relu),  # 40 parameters
          Dense(8, 2),        # 18 parameters
        )                     # Total: 4 tensors, 58 parameters, 232 bytes
        >>> fl.Chain(body=fl.Dense(4, 8), head=fl.Dense(8, 2))["head"]
        Dense(8, 2)  # 18 parameters
    """

    def __init__(self, *layers: Callable[..., Any], **named: Callable[..., Any]) -> None:
        self._take(layers, named)

    def __call__(self, x: Any) -> Any:
        i = 0
        before = x
        try:
            for i, layer in enumerate(self.layers):  # noqa: B007
                before = x
                x = layer(x)
        except Exception as error:
            fail(f".layers[{i}]", self.layers[i], (before,), error)
        return x


@functor
class SkipConnection:
    """A layer and a way around it: ``connection(layer(x), x)``.

    Args:
        layer: a layer, or any callable.
        connection: what joins the two; for a residual block, ``torch.add`` or ``operator.add``.

    Attributes:
        layer: the layer.
        connection: the function of two.

    Raises:
        TypeError: one of them is not callable.
        LayerError: from a call: one of them failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> block = fl.SkipConnection(fl.Dense(4, 4, fl.relu), torch.add)
        >>> block(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """

    layer: Callable[..., Any]
    connection: Callable[[Any, Any], Any]

    def __init__(self, layer: Callable[..., Any], connection: Callable[[Any, Any], Any]) -> None:
        require_callable("SkipConnection", "layer", layer)
        if not callable(connection):
            raise TypeError(f"SkipConnection takes a callable connection, found {connection!r}")
        object.__setattr__(self, "layer", adopted(layer))
        object.__setattr__(self, "connection", adopted(connection))

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_attribute(self, name, "m.layer")
        object.__setattr__(self, name, value)

    def __call__(self, x: Any) -> Any:
        try:
            y = self.layer(x)
        except Exception as error:
            fail(".layer", self.layer, (x,), error)
        try:
            return self.connection(y, x)
        except Exception as error:
            fail(".connection", self.connection, (y, x), error)
