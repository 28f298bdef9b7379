"""Layers beside one another: Parallel, Maxout and PairwiseFusion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, overload

import torch
from torch import Tensor

from fluxlike.layers.errors import fail
from fluxlike.layers.steps import Steps
from fluxlike.trees.adopt import adopted
from fluxlike.trees.functor import functor

__all__ = ["Maxout", "PairwiseFusion", "Parallel"]

Layer = Callable[..., Any]


@functor(children=("connection", "layers"))
class Parallel(Steps):
    """Layers beside one another, and what joins them: ``connection(layer₁(x), layer₂(x), …)``.

    One input goes to every layer; of several, each layer gets one, and a single layer gets each in turn.
    A tuple as the only input is several inputs.

    Args:
        connection: a function of as many outputs as there are, such as ``torch.add`` for two or
            ``lambda *ys: torch.cat(ys, 1)``.
        layers: layers, or any other callables.
        named: layers by name, instead of `layers`.

    Attributes:
        connection: the function.
        layers: the layers, a tuple.
        names: the names of the layers, or None.

    Raises:
        TypeError: something that is not callable, or named and unnamed layers mixed.
        ValueError: no layers; from a call: another number of inputs.
        LayerError: from a call: a layer, or the connection, failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> both = fl.Parallel(torch.add, torch.square, torch.sqrt)
        >>> both(torch.tensor(3.0), torch.tensor(4.0)), both(torch.tensor(4.0))
        (tensor(11.), tensor(18.))
        >>> fl.Parallel(torch.add, fl.Dense(4, 2), fl.Dense(4, 2, fl.relu))
        Parallel(
          add,
          Dense(4, 2),        # 10 parameters
          Dense(4, 2, relu),  # 10 parameters
        )                     # Total: 4 tensors, 20 parameters, 80 bytes
    """

    connection: Layer

    def __init__(self, connection: Layer, /, *layers: Layer, **named: Layer) -> None:
        _require_connection("Parallel", connection)
        object.__setattr__(self, "connection", adopted(connection))
        self._take_some(layers, named)

    def __call__(self, *inputs: Any) -> Any:
        xs, n = _several(inputs), len(self.layers)
        if len(xs) not in (1, n) and (n > 1 or not xs):
            _refuse_inputs(self, len(xs))
        layers = self.layers * len(xs) if n == 1 else self.layers
        ys = tuple(_outputs(layers, xs * n if len(xs) == 1 else xs, n))
        try:
            return self.connection(*ys)
        except Exception as error:
            fail(".connection", self.connection, ys, error, _hint(ys) if type(error) is TypeError else "")


@functor(children=("layers",))
class Maxout(Steps):
    """The elementwise maximum of the outputs of layers (Goodfellow et al. 2013, arXiv 1302.4389).

    Args:
        layers: layers, or any other callables, which give outputs of one shape; or a function without
            arguments that makes one, and how many: ``Maxout(lambda: Dense(4, 8), 3)``.
        named: layers by name, instead of `layers`.

    Attributes:
        layers: the layers, a tuple.
        names: the names of the layers, or None.

    Raises:
        TypeError: a layer that is not callable, or named and unnamed layers mixed.
        ValueError: no layers; from a call: outputs of different shapes.
        LayerError: from a call: a layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Maxout(torch.square, lambda x: 3 * x)(torch.arange(-2, 3))
        tensor([4, 1, 0, 3, 6])
        >>> fl.Maxout(lambda: fl.Dense(4, 2), 2)
        Maxout(
          Dense(4, 2),  # 10 parameters
          Dense(4, 2),  # 10 parameters
        )               # Total: 4 tensors, 20 parameters, 80 bytes
    """

    @overload
    def __init__(self, make: Callable[[], Layer], n: int, /) -> None: ...
    @overload
    def __init__(self, *layers: Layer, **named: Layer) -> None: ...

    def __init__(self, *layers: Any, **named: Any) -> None:
        if len(layers) == 2 and type(layers[1]) is int:
            make, n = layers
            layers = tuple(make() for _ in range(n))
        self._take_some(layers, named)

    def __call__(self, x: Any) -> Tensor:
        ys = _outputs(self.layers, (x,) * len(self.layers), len(self.layers))
        for i, y in enumerate(ys):
            if y.shape != ys[0].shape:
                raise ValueError(
                    f"Maxout takes layers whose outputs have one shape, found {tuple(ys[0].shape)} of "
                    f".layers[0] and {tuple(y.shape)} of .layers[{i}]"
                )
        return functools.reduce(torch.maximum, ys)


@functor(children=("connection", "layers"))
class PairwiseFusion(Steps):
    """Layers each of which gets the output of the one before, joined with an input of its own.

    ``y₁ = layer₁(x₁)``, ``y₂ = layer₂(connection(x₂, y₁))``, ``y₃ = layer₃(connection(x₃, y₂))`` and so on,
    as in Res2Net (Gao et al. 2019, arXiv 1904.01169). A single input is every xᵢ. A tuple as the only input
    is several inputs.

    Args:
        connection: a function of an input and the output before it, such as ``torch.add``.
        layers: layers, or any other callables.
        named: layers by name, instead of `layers`.

    Attributes:
        connection: the function of two.
        layers: the layers, a tuple.
        names: the names of the layers, or None.

    Returns:
        Of a call, the tuple of all y.

    Raises:
        TypeError: something that is not callable, or named and unnamed layers mixed.
        ValueError: no layers; from a call: another number of inputs.
        LayerError: from a call: a layer, or the connection, failed.

    Example:
        >>> import operator, fluxlike as fl
        >>> fuse = fl.PairwiseFusion(operator.add, lambda x: 10 * x, lambda x: x + 1, lambda x: 2 * x)
        >>> fuse(1, 2, 3), fuse(1)
        ((10, 13, 32), (10, 12, 26))
    """

    connection: Layer

    def __init__(self, connection: Callable[[Any, Any], Any], /, *layers: Layer, **named: Layer) -> None:
        _require_connection("PairwiseFusion", connection)
        object.__setattr__(self, "connection", adopted(connection))
        self._take_some(layers, named)

    def __call__(self, *inputs: Any) -> tuple[Any, ...]:
        xs, n = _several(inputs), len(self.layers)
        if len(xs) != n and len(xs) != 1:
            _refuse_inputs(self, len(xs))
        xs = xs if len(xs) == n else xs * n
        ys = _outputs(self.layers[:1], xs[:1], n)
        for i in range(1, n):
            try:
                x = self.connection(xs[i], ys[-1])
            except Exception as error:
                fail(".connection", self.connection, (xs[i], ys[-1]), error)
            try:
                ys.append(self.layers[i](x))
            except Exception as error:
                fail(f".layers[{i}]", self.layers[i], (x,), error)
        return tuple(ys)


def _require_connection(name: str, connection: Any) -> None:
    if isinstance(connection, type):
        hint = "; write lambda *ys: ys" if connection is tuple else ""
        found = connection.__name__
        raise TypeError(f"{name} takes a function as its connection, found the class {found}{hint}")
    if not callable(connection):
        raise TypeError(f"{name} takes a callable connection first, found {connection!r}")


def _several(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return inputs[0] if len(inputs) == 1 and type(inputs[0]) is tuple else inputs


def _refuse_inputs(layer: Any, found: int) -> NoReturn:
    n = len(layer.layers)
    raise ValueError(
        f"{type(layer).__name__} has {n} layers, found {found} inputs; write one input for all layers, or "
        f"{n}, one for each"
    )


def _outputs(layers: tuple[Layer, ...], xs: tuple[Any, ...], held: int) -> list[Any]:
    """Each layer's output of its input; `held` is how many layers the node has."""
    ys: list[Any] = []
    try:
        for layer, x in zip(layers, xs, strict=True):
            ys.append(layer(x))
    except Exception as error:
        i = len(ys)
        fail(f".layers[{i % held}]", layers[i], (xs[i],), error)
    return ys


def _hint(ys: tuple[Any, ...]) -> str:
    """What to write where the connection is a function of two outputs, or of a list of them."""
    return f"; it is called with the {len(ys)} outputs: write lambda *ys: torch.cat(ys, 1), or sum(ys)"
