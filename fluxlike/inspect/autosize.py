"""`autosize`: layers that were made with `auto` get their sizes from an example."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from fluxlike.inspect.dry_run import DryRun
from fluxlike.layers.auto import Deferred, Sizes, Token, is_deferred, waiting
from fluxlike.placement.dry import on_meta
from fluxlike.transforms.listening import Call
from fluxlike.trees.fmap import fmap_with_path

__all__ = ["autosize"]


def autosize(model: Any, /, *example: Any, dtype: torch.dtype | None = None, **named: Any) -> Any:
    """A model with real layers in place of those made with `auto`, sized by an example of its input.

    The model runs once on the meta device, where each layer sees what it is called with. Then the
    layers are made in the order of the tree, in the default dtype, on the default device.

    Their initial values are drawn then, from the key in scope; those of a layer whose sizes are written
    were drawn when it was made, before them. So a model has the values that it would have with all sizes
    written if, from the first layer with `auto` on, every layer that draws has `auto`.

    Args:
        model: a model; layers made with `auto` may stand anywhere among its children.
        example: what it is called with: tensors, shapes such as ``(32, 3, 28, 28)`` in their place, or
            trees of these. The size of the batch does not matter.
        dtype: of the examples given by their shape, as in `outputsize`.
        named: examples of what it is called with by name.

    Returns:
        A new model. Other leaves are the same objects; a layer that stands at several places is one
        layer there, tied.

    Raises:
        LayerError: a layer failed, with its path, what it got and what it wants; or one made with `auto`
            is called with several sizes.
        ValueError: a layer made with `auto` that the model does not call.
        TypeError: the model can't be called.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(
        ...     fl.Conv((3, 3), fl.auto, 16, fl.relu), fl.BatchNorm(fl.auto), fl.flatten, fl.Dense(fl.auto, 9)
        ... )
        >>> fl.autosize(model, torch.zeros(1, 3, 32, 32))
        Chain(
          Conv((3, 3), 3, 16, relu),  # 448 parameters
          BatchNorm(16),              # 32 parameters, 32 non-trainable
          flatten,
          Dense(14400, 9),            # 129_609 parameters
        )                             # Total: 8 tensors, 130_089 parameters, 32 non-trainable, 508.285 KiB
    """
    sizing = _Sizing()
    sizing.run(model, example, dtype, named)
    sizing.require_all()
    return _made(model, "", sizing, {})


class _Found(NamedTuple):
    """A deferred layer: the path of its first call, its sizes then, and itself on the meta device."""

    path: str
    sizes: Sizes
    layer: Any


class _Sizing(DryRun):
    """Makes each deferred layer on the meta device when it is called first."""

    def __init__(self) -> None:
        super().__init__("autosize")
        self._waiting: dict[Token, tuple[str, Deferred]] = {}
        self._by_token: dict[Token, _Found] = {}
        self._by_path: dict[str, _Found] = {}

    def rebuild(self, model: Any, path: str = "") -> Any:
        for below, deferred in waiting(model):
            self._waiting.setdefault(deferred.token, (path + below, deferred))
        return super().rebuild(model, path)

    def heard(self, call: Call) -> Any:
        if isinstance(call.layer, Deferred):
            call = call._replace(forward=functools.partial(self._call_sized, call.path, call.layer))
        return super().heard(call)

    def _call_sized(self, path: str, deferred: Deferred, /, *args: Any, **kwargs: Any) -> Any:
        return self._sized(path, deferred, args, kwargs)(*args, **kwargs)

    def _sized(self, path: str, deferred: Deferred, args: Any, kwargs: Any) -> Any:
        sizes = deferred.sizes(*args, **kwargs)
        found = self._by_token.get(deferred.token)
        if found is None:
            layer = self.rebuild(on_meta(deferred.make(sizes)), path)
            found = self._by_token[deferred.token] = _Found(path, sizes, layer)
        elif found.sizes != sizes:
            raise ValueError(
                f"{deferred!r} is one layer, called with {_say(found.sizes)} at {found.path or 'the root'} "
                f"first and with {_say(sizes)} at {path or 'the root'} now; make it two layers"
            )
        self._by_path[path] = found
        return found.layer

    def found(self, path: str, deferred: Deferred) -> _Found:
        """What was found of a deferred layer: itself, or one that stands at its place on the meta device."""
        return self._by_token.get(deferred.token) or self._by_path[path]

    def require_all(self) -> None:
        """Raise where a deferred layer was not called."""
        for token, (path, deferred) in self._waiting.items():
            if token not in self._by_token:
                raise ValueError(
                    f"{path or 'the root'}: {deferred!r} is not called when the model is called on the "
                    "example, so nothing tells its sizes; write them, or give an example that reaches it"
                )


def _made(tree: Any, path: str, sizing: _Sizing, made: dict[Token, Any]) -> Any:
    """A tree with the real layers in place of the deferred ones, made in the order of the tree."""

    def make(below: str, x: Any) -> Any:
        if not isinstance(x, Deferred):
            return x
        if x.token not in made:
            found = sizing.found(path + below, x)
            made[x.token] = _made(x.make(found.sizes), found.path, sizing, made)
        return made[x.token]

    return fmap_with_path(make, tree, is_leaf=is_deferred, leaves="all") if waiting(tree) else tree


def _say(sizes: Sizes) -> str:
    return ", ".join(_say(x) if isinstance(x, dict) else f"{name}={x}" for name, x in sizes.items())
