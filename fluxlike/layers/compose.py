"""Layers made of layers: Chain and SkipConnection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fluxlike.layers.errors import LayerError
from fluxlike.trees.functor import functor

__all__ = ["Chain", "SkipConnection"]


@functor(children=("layers",))
class Chain:
    """Layers in a row: each gets the output of the one before.

    Args:
        layers: layers, or any other callables.
        named: layers by name, instead of `layers`.

    Attributes:
        layers: the layers, a tuple.
        names: the names of the layers, or None.

    Raises:
        TypeError: a step that is not callable, or named and unnamed layers mixed.
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

    names: tuple[str, ...] | None = None

    def __init__(self, *layers: Callable[..., Any], **named: Callable[..., Any]) -> None:
        if layers and named:
            raise TypeError("Chain takes layers either in order or by name, not both")
        self.layers = layers or tuple(named.values())
        if named:
            self.names = tuple(named)
        for i, layer in enumerate(self.layers):
            if not callable(layer):
                raise TypeError(
                    f"step {i} of Chain is {layer!r} of {type(layer).__name__}, which can't be called; "
                    "write the layers one by one, or Chain(*layers)"
                )

    def __call__(self, x: Any) -> Any:
        i = 0
        before = x
        try:
            for i, layer in enumerate(self.layers):  # noqa: B007
                before = x
                x = layer(x)
        except Exception as error:
            if not isinstance(error, (RuntimeError, ValueError, TypeError, IndexError)):
                raise
            raise LayerError.at(f".layers[{i}]", self.layers[i], before, error) from error
        return x

    def __getitem__(self, key: int | str | slice) -> Any:
        if isinstance(key, slice):
            start, stop, stride = (
                self._index(k) if isinstance(k, str) else k for k in (key.start, key.stop, key.step)
            )
            key = slice(start, stop, stride)
            if self.names is None:
                return Chain(*self.layers[key])
            return Chain(**dict(zip(self.names[key], self.layers[key], strict=True)))
        return self.layers[self._index(key) if isinstance(key, str) else key]

    def _index(self, name: str) -> int:
        if self.names is None or name not in self.names:
            raise KeyError(f"no layer named {name!r}; the names are {self.names or 'not given'}")
        return self.names.index(name)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)


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

    Example:
        >>> import torch, fluxlike as fl
        >>> block = fl.SkipConnection(fl.Dense(4, 4, fl.relu), torch.add)
        >>> block(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(self, layer: Callable[..., Any], connection: Callable[[Any, Any], Any]) -> None:
        for name, f in (("layer", layer), ("connection", connection)):
            if not callable(f):
                raise TypeError(f"SkipConnection takes a callable {name}, found {f!r}")
        self.layer, self.connection = layer, connection

    def __call__(self, x: Any) -> Any:
        try:
            y = self.layer(x)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise LayerError.at(".layer", self.layer, x, error) from error
        return self.connection(y, x)
