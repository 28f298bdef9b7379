"""Whole models between our layout and that of Flux, Flax and Keras, tensor by tensor in its place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.placement.foreign.flattened import flattened_features, may_flatten, reorder
from fluxlike.placement.foreign.parameters import (
    CHANNELS_LAST,
    Site,
    require_framework,
    require_ranks,
    sites,
    slots,
)
from fluxlike.placement.foreign.parts import Part
from fluxlike.trees import paths
from fluxlike.trees.places import Where, find_places
from fluxlike.trees.structure import flatten, structure_of
from fluxlike.trees.values import value_of

__all__ = ["convert_layout", "crosscor_entries", "in_framework_order", "parts_of"]


def convert_layout(
    model: Any,
    src: str,
    dst: str = "torch",
    *,
    inputs: Any = None,
    crosscor: Where | tuple[Where, ...] | None = None,
) -> Any:
    """A model with its tensors in the layout of another framework.

    Each layer's rule says how: axes in another order, convolution kernels flipped, gates, and a Dense
    after a flatten, whose inputs are reordered. The values stay in the places that they have in our
    model, under our names. Where a framework keeps one array for two tensors of ours (a bias of Flux's
    LSTM), it is at the first place, and None at the other; there the two are added up, so gradients do
    not convert like this. To go from the arrays of a checkpoint to a model, with their names, use
    `load_foreign_state`.

    Args:
        model: a model made of our layers, whose tensors hold values in the layout `src`.
        src: ``"flux"``, ``"flax"``, ``"keras"`` or ``"torch"``, which is ours.
        dst: where to, one of the same. (default: ``"torch"``)
        inputs: an example of the model's input, or a tuple of them, in our layout; only the shapes
            matter. From and to Flax and Keras it is needed where a flatten, or a function or class of
            your own, may come before or after a Dense: the model is run on the meta device, in test mode,
            to see what is flattened, and what can't be followed is an error. (default: None)
        crosscor: where the layers are that Flux calls CrossCor, whose kernels are not flipped, or
            containers of them, as `at` takes places. (default: none)

    Returns:
        A tree of the same structure and ties. Its tensors may be views of the model's or the same, so
        clone it, `fluxlike.tree.clone`, before you change either in place.

    Raises:
        ValueError: unknown frameworks, `inputs` missing, a place of `crosscor` without a Conv, a stacked
            model, or tied tensors that part in the new layout.
        TypeError: a tensor of a class without a rule, or that is several arrays there.
        RuntimeError: the model fails on `inputs`.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Conv((5, 3), 1, 4), fl.GlobalMeanPool(), fl.flatten)
        >>> there = fl.convert_layout(model, "torch", "flux")
        >>> there.layers[0].weight.shape
        torch.Size([3, 5, 1, 4])
        >>> fl.tree.allclose(fl.convert_layout(there, "flux"), model)
        True
    """
    require_framework("src", src, "torch")
    require_framework("dst", dst, "torch")
    if src == dst:
        return model
    places = crosscor_entries(model, crosscor, src, dst)
    if src != "torch":
        here = _apply(model, src, _read, places)
        require_ranks(here, src)
        model = in_framework_order(here, src, inputs, ours=True)
    if dst != "torch":
        require_ranks(model, dst)
        there = in_framework_order(model, dst, inputs, ours=False)
        model = _apply(there, dst, _write, places)
    return model


def crosscor_entries(
    model: Any, where: Where | tuple[Where, ...] | None, /, *frameworks: str
) -> set[tuple[Any, ...]]:
    """The ways to the layers that Flux calls CrossCor: those at or below the places.

    Raises:
        ValueError: there is none at or below a place, or Flux has no part in it.
    """
    if where is None:
        return set()
    if "flux" not in frameworks:
        raise ValueError(
            f"crosscor= is about kernels of Flux, and this is from or to {frameworks[0]}; leave it out"
        )
    known = [site for site in sites(model, "flux") if any(p.crosscor for p in site.parts())]
    chosen: set[int] = set()
    for place in find_places(model, where)[0]:
        below = [site for site in known if site.entries[: len(place)] == place]
        if not below:
            raise ValueError(
                f"crosscor={where!r}: at or below {paths.text_of(model, place)} is no Conv; write the places "
                f"of layers or of what holds them, such as {known[0].path or repr('')}"
                if known
                else f"crosscor={where!r}: the model has no Conv; leave it out"
            )
        chosen.update(id(site.layer) for site in below)
    return {site.entries for site in known if id(site.layer) in chosen}


def parts_of(site: Site, framework: str, crosscor: set[tuple[Any, ...]], /) -> list[Part]:
    """The parts of a layer, its kernel as it is if it is a CrossCor."""
    if framework == "flux" and site.entries in crosscor:
        return [part.crosscor or part for part in site.parts()]
    return site.parts()


def in_framework_order(model: Any, framework: str, inputs: Any, /, *, ours: bool) -> Any:
    """A model of ours with what takes or makes flattened images in our order, or in the framework's.

    Raises:
        ValueError: `inputs` is None, and needed.
    """
    if framework not in CHANNELS_LAST:
        return model
    if inputs is None:
        if may_flatten(model):
            raise ValueError(
                f"{framework} flattens images with their channels last, and this model may flatten some "
                "before a Dense, or a function or a class of your own in it may; give an example of its "
                "input in our layout, such as inputs=torch.zeros(1, 3, 32, 32)"
            )
        return model
    return reorder(model, flattened_features(model, inputs), ours=ours)


Convert = Callable[[Site, Part, list[Any]], Sequence[Any]]


def _apply(model: Any, framework: str, convert: Convert, crosscor: set[tuple[Any, ...]]) -> Any:
    new: dict[tuple[Any, ...], Any] = {}
    done: dict[int, Any] = {}  # one layer at several places stays one
    for site in sites(model, framework):
        if id(site.layer) not in done:
            changed: dict[tuple[Any, ...], Any] = {}
            for full in parts_of(site, framework, crosscor):
                part = full.in_place or full
                found = slots(site, part)
                values = [value_of(x) if isinstance(x, Tensor) else x for _, x in found]
                if all(x is None or isinstance(x, Tensor) for x in values):
                    results = convert(site, part, values)
                    for (entries, old), value, x in zip(found, values, results, strict=True):
                        changed[entries] = old if x is value else x
            done[id(site.layer)] = paths.replace(site.layer, changed) if changed else site.layer
        new[site.entries] = done[id(site.layer)]
    return _tied_as(model, paths.replace(model, new) if new else model, framework)


def _read(site: Site, part: Part, values: list[Any]) -> Sequence[Any]:
    if len(part.theirs) > len(part.ours):
        _refuse_several(site, part)
    try:
        return part.read(*values[: len(part.theirs)])
    except (ValueError, IndexError, RuntimeError) as error:
        raise ValueError(f"{site.path}{part.ours[0]}: {error}") from error


def _write(site: Site, part: Part, values: list[Any]) -> Sequence[Any]:
    if len(part.theirs) > len(part.ours):
        _refuse_several(site, part)
    results = part.write(*values)
    return [*results, *[None] * (len(values) - len(results))]


def _refuse_several(site: Site, part: Part) -> None:
    raise TypeError(
        f"{site.path}{part.ours[0]} is several arrays there ({', '.join(part.theirs)}), which "
        "don't fit into its place; use fluxlike.load_foreign_state and fluxlike.foreign_state"
    )


def _tied_as(old: Any, new: Any, framework: str) -> Any:
    """The new tree with one tensor wherever the old one has one."""
    before, treedef = flatten(old)
    where = structure_of(treedef).paths
    after, treedef = flatten(new)
    firsts: dict[int, int] = {}
    for i, x in enumerate(before):
        first = firsts.setdefault(id(x), i) if isinstance(x, Tensor) else i
        if after[i] is not after[first]:
            if not _equal(after[i], after[first]):
                raise ValueError(
                    f"{where[first]} and {where[i]} are tied, and differ in the layout of {framework}; "
                    "use fluxlike.load_foreign_state and fluxlike.foreign_state, which keep them apart there"
                )
            after[i] = after[first]
    return treedef.unflatten(after)


def _equal(a: Any, b: Any) -> bool:
    if not isinstance(a, Tensor) or not isinstance(b, Tensor) or a.shape != b.shape:
        return False
    return a.stride() == b.stride() if a.is_meta else bool(torch.equal(a, b))
