"""Which features of a model are flattened images, found by running it without data on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike.placement.device import to_device
from fluxlike.placement.dtype import f32
from fluxlike.trees import paths
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Flattened", "flattened_features", "may_flatten", "may_meet", "reorder"]

_on_images: list[Any] = []
_on_features: list[Any] = []


def may_meet(*, images: Iterable[Any], features: Iterable[Any]) -> None:
    """Say which classes of layers (or functions) take images, and which what may be flattened ones."""
    _on_images.extend(images)
    _on_features.extend(features)


def may_flatten(model: Any, /) -> bool:
    """Whether a model holds something that takes images, and something that takes features."""
    nodes = _nodes(model)
    return all(
        any(x is t or type(x) is t for x in nodes for t in known) for known in (_on_images, _on_features)
    )


def _nodes(node: Any) -> list[Any]:
    return [node, *(x for _, child in paths.children(node) for x in _nodes(child))]


@dataclass(frozen=True)
class Flattened:
    """An axis of a parameter that counts the entries of images, and their shape (C, \\*spatial)."""

    axis: int
    image: tuple[int, ...]

    def index(self, *, ours: bool) -> Tensor:
        """The order of the entries in ours, as places in channels-last ones; or the other way round."""
        n = torch.Size(self.image).numel()
        channels, *spatial = self.image
        if ours:
            return torch.arange(n).reshape(*spatial, channels).movedim(-1, 0).flatten()
        return torch.arange(n).reshape(self.image).movedim(0, -1).flatten()


def flattened_features(model: Any, inputs: Any, /) -> dict[int, list[Flattened]]:
    """The axes of a model's leaves, by the number of the leaf, that count entries of flattened images.

    Args:
        model: a model of ours.
        inputs: an input, or a tuple of inputs, of the shapes that the model takes.

    Raises:
        RuntimeError: the model fails on the input.
        ValueError: a parameter would have to be in two orders.
    """
    there = f32(to_device(model, "meta"))  # shapes alone matter, so model and input may differ in dtype
    leaves, treedef = flatten(there)
    given = f32(to_device(inputs if isinstance(inputs, tuple) else (inputs,), "meta"))
    tracker = _Tracker({id(x): x for x in leaves if isinstance(x, Tensor)}, given)
    try:
        with torch.no_grad(), tracker:
            there(*given)
    except Exception as error:
        raise RuntimeError(
            f"the model fails on inputs= ({type(error).__name__}: {error}); give an example of the shape "
            "that it takes, such as torch.zeros(1, 3, 32, 32)"
        ) from error
    where = structure_of(treedef).paths
    found: dict[int, list[Flattened]] = {}
    for i, x in enumerate(leaves):
        uses = tracker.found.get(id(x), []) if isinstance(x, Tensor) else []
        for use in uses:
            clash = next((u for u in uses if u.axis == use.axis and u.image != use.image), None)
            if clash is not None:
                raise ValueError(
                    f"axis {use.axis} of {where[i]} takes flattened images of {use.image} and of "
                    f"{clash.image} (C, …), and can be reordered for one of them only"
                )
        if uses:
            found[i] = list(dict.fromkeys(uses))
    return found


def reorder(model: Any, found: dict[int, list[Flattened]], /, *, ours: bool) -> Any:
    """A model with its flattened axes in our order, from a channels-last one; or the other way round."""
    leaves, treedef = flatten(model)
    done: dict[int, Tensor] = {}
    for i, uses in found.items():
        x = leaves[i]
        if not isinstance(x, Tensor):
            continue
        if id(x) not in done:
            new = x
            for use in uses:
                new = new.index_select(use.axis, use.index(ours=ours).to(x.device))
            done[id(x)] = new
        leaves[i] = done[id(x)]
    return treedef.unflatten(leaves)


@dataclass
class _Features:
    """What is known of a tensor of features: the images that it flattens, the parameters that made it."""

    image: tuple[int, ...] | None = None
    makers: list[tuple[Tensor, int]] = field(default_factory=list)


class _Tracker(TorchFunctionMode):
    """Follows images and what is flattened from them through the functions of torch."""

    def __init__(self, parameters: dict[int, Tensor], inputs: Any) -> None:
        super().__init__()
        self._parameters = parameters
        self._images: dict[int, Tensor] = {}
        self._features: dict[int, tuple[Tensor, _Features]] = {}
        self.found: dict[int, list[Flattened]] = {}
        for x in flatten(inputs)[0]:
            if isinstance(x, Tensor) and x.ndim > 3:
                self._images[id(x)] = x

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if isinstance(out, Tensor):
            given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            self._follow(getattr(func, "__name__", ""), given, out)
        return out

    def _follow(self, name: str, given: list[Tensor], out: Tensor) -> None:
        if name.startswith("conv"):
            self._images[id(out)] = out
            return
        for x in given:
            if id(x) in self._images:
                self._from_image(name, x, out)
        known = [self._features[id(x)][1] for x in given if id(x) in self._features]
        parameters = [x for x in given if id(x) in self._parameters]
        for features in known or ([_Features()] if parameters else []):
            self._from_features(name, features, parameters, out)

    def _from_image(self, name: str, x: Tensor, out: Tensor) -> None:
        if name in _RESHAPES:
            if out.ndim == 2 and out.shape[0] == x.shape[0] and x.shape[2:].numel() > 1:
                self._features[id(out)] = out, _Features(tuple(x.shape[1:]))
        elif out.ndim == x.ndim and name not in _MOVES_AXES:
            self._images[id(out)] = out

    def _from_features(self, name: str, features: _Features, parameters: list[Tensor], out: Tensor) -> None:
        if name in _RESHAPES:
            if out.ndim > 3:  # an image made of features: their makers' outputs are its entries
                self._images[id(out)] = out
                for p, axis in features.makers:
                    self._note(p, axis, tuple(out.shape[1:]))
            return
        if name in _MOVES_AXES or out.ndim != 2:
            return
        weight = next((p for p in parameters if p.ndim == 2), None) if name in _MULTIPLIES else None
        if weight is not None:
            inward = 1 if name == "linear" else 0
            if features.image:
                self._note(weight, inward, features.image)
            makers = [(p, 0 if p.ndim == 1 else 1 - inward) for p in parameters]
            self._features[id(out)] = out, _Features(None, makers)
            return
        each = [p for p in parameters if p.ndim == 1 and p.shape[0] == out.shape[1]]
        for p in each if features.image else []:
            self._note(p, 0, features.image or ())
        self._features[id(out)] = out, _Features(features.image, [*features.makers, *((p, 0) for p in each)])

    def _note(self, p: Tensor, axis: int, image: tuple[int, ...]) -> None:
        if p.shape[axis] == torch.Size(image).numel() and torch.Size(image[1:]).numel() > 1:
            self.found.setdefault(id(p), []).append(Flattened(axis, image))


_RESHAPES = {"flatten", "reshape", "reshape_as", "unflatten", "view", "view_as"}
_MOVES_AXES = {
    "permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims", "t", "adjoint", "__get__",
}  # fmt: skip
_MULTIPLIES = {"linear", "matmul", "mm", "__matmul__", "addmm"}
