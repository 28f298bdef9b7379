"""Layers made of layers: Chain and SkipConnection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

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
            _check_step(i, layer)

    def __call__(self, x: Any) -> Any:
        i = 0
        before = x
        try:
            for i, layer in enumerate(self.layers):  # noqa: B007
                before = x
                x = layer(x)
        except Exception as error:
            if not LayerError.wraps(error):
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

    def __getattr__(self, name: str) -> Any:
        if name in _ELSEWHERE:
            raise AttributeError(f"a Chain has no {name!r}: {_ELSEWHERE[name]}")
        raise AttributeError(
            f"a Chain has no {name!r}; its layers are chain.layers, named ones chain['name']"
        )

    def _index(self, name: str) -> int:
        if self.names is not None and len(self.names) != len(self.layers):
            raise KeyError(
                f"the Chain has {len(self.layers)} layers and the names {self.names}; make it anew"
            )
        if self.names is None or name not in self.names:
            raise KeyError(f"no layer named {name!r}; the names are {self.names or 'not given'}")
        return self.names.index(name)

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)


def _check_step(i: int, layer: Any) -> None:
    """Refuse a step that can't be called, or that would not do what it seems to."""
    if isinstance(layer, type):
        raise TypeError(f"step {i} of Chain is the class {layer.__name__}: write {layer.__name__}(…)")
    if not callable(layer):
        raise TypeError(
            f"step {i} of Chain is {layer!r} of {type(layer).__name__}, which can't be called; "
            "write the layers one by one, or Chain(*layers)"
        )
    if isinstance(layer, torch.nn.Module):
        name = type(layer).__name__
        holds = any(True for _ in layer.parameters()) or any(True for _ in layer.buffers())
        if holds or "Dropout" in name:
            why = "keeps its tensors to itself" if holds else "has a train mode of its own"
            raise TypeError(
                f"step {i} of Chain is torch's {name}, which {why}; use fluxlike's layer, or a class of your "
                "own under @fluxlike.functor"
            )


# What users of torch.nn look for on a module, and what does it here.
_ELSEWHERE = {
    "train": "gradient trains, everything else tests; fluxlike.mode and fluxlike.trainmode say otherwise",
    "eval": "everything but gradient tests; fluxlike.testmode pins a layer",
    "parameters": "write fluxlike.trainables(model)",
    "named_parameters": "write fluxlike.trainables(model, paths=True)",
    "to": "write fluxlike.to_device(model, device), or fluxlike.f16(model) for a dtype",
    "cuda": "write fluxlike.to_device(model, 'cuda')",
    "half": "write fluxlike.f16(model)",
    "state_dict": "write fluxlike.state_dict(model)",
    "load_state_dict": "write model = fluxlike.load_state_dict(model, d)",
    "zero_grad": "gradients are values here, there is nothing to zero",
    "requires_grad_": "write fluxlike.freeze(state, where), or gradient(…, wrt=where)",
}


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
        except Exception as error:
            if not LayerError.wraps(error):
                raise
            raise LayerError.at(".layer", self.layer, x, error) from error
        return self.connection(y, x)
