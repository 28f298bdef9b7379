"""The arrays of a checkpoint of Flux, Flax or Keras as a model of ours, and back."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluxlike.placement.foreign.alignment import align
from fluxlike.placement.foreign.checkpoint import one_collection, with_nesting
from fluxlike.placement.foreign.convert import crosscor_entries, in_framework_order, parts_of
from fluxlike.placement.foreign.parameters import require_framework, require_ranks, sites
from fluxlike.placement.foreign.reading import Reading
from fluxlike.placement.foreign.writing import Writer
from fluxlike.trees.places import Where
from fluxlike.trees.state_dict import fit, is_plain
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["foreign_state", "load_foreign_state"]


def load_foreign_state(
    model: Any,
    state: Any,
    /,
    src: str,
    *,
    inputs: Any = None,
    crosscor: Where | tuple[Where, ...] | None = None,
) -> Any:
    """A model with the arrays of a checkpoint of another framework, in our layout.

    The arrays have the names and the axes that they have there: in Flux those that Julia prints (numpy
    arrays that h5py read are reversed: `batch_last` of the whole state puts them right), in Flax and
    Keras those of numpy. The checkpoint is matched with the model by our own names or the names of a
    Chain, where it has them; by class and number, as in ``Conv_0``, ``Dense_1``, or ``conv2d``,
    ``dense_1``; or, if it is a list, in order, an entry a layer or all arrays in a row as Keras'
    ``get_weights`` returns them.

    Args:
        model: a model of ours of the same layers, in the order of the checkpoint. Settings, such as the
            ``eps`` of a BatchNorm, are not in a checkpoint.
        state: nested dicts and lists of arrays. Names with slashes, ``conv2d/kernel``, are nested;
            Flax' collections may be ``{"params": …, "batch_stats": …}``; those in which no layer of the
            model keeps anything must be left out.
        src: ``"flux"``, ``"flax"`` or ``"keras"``.
        inputs: as in `convert_layout`.
        crosscor: as in `convert_layout`.

    Returns:
        A model of the same structure and ties, with tensors of its own.

    Raises:
        ValueError: something is missing or left over, has another shape or dtype, or differs between
            tied places. All mismatches of arrays are named at once. Or an unknown framework, `inputs`
            missing, or a place of `crosscor` without a Conv.
        TypeError: a tensor of a class without a rule, or a state that is no dict, list or array.
        RuntimeError: the model fails on `inputs`.

    Example:
        >>> import numpy as np, torch, fluxlike as fl
        >>> params = {"Dense_0": {"kernel": np.ones((2, 1), np.float32), "bias": np.ones(1, np.float32)}}
        >>> model = fl.load_foreign_state(fl.Chain(fl.Dense(2, 1)), params, "flax")
        >>> model(torch.ones(1, 2))
        tensor([[3.]])
    """
    require_framework("src", src)
    places = crosscor_entries(model, crosscor, src)
    state = with_nesting(state)
    if src == "flax":
        state = one_collection(state, _collections(model, src))
    found: dict[str, Tensor] = {}
    faults: dict[str, str] = {}
    owned: set[str] = set()
    for match in align(model, state, src):
        parts = [] if match.site is None else parts_of(match.site, src, places)
        reading = Reading(match, parts)
        owned.update(reading.owned)
        found.update(reading.found)
        faults.update(reading.faults)
    filled = _filled(model, found, owned)
    told = [fault for path, fault in faults.items() if path not in filled]
    here = fit(model, filled, what=f"the {src} state", faults=told, skip=owned)
    return in_framework_order(here, src, inputs, ours=True)


def foreign_state(
    model: Any,
    /,
    dst: str,
    *,
    inputs: Any = None,
    crosscor: Where | tuple[Where, ...] | None = None,
) -> Any:
    """The tensors of a model in the layout of another framework and under its names.

    Args:
        model: a model of our layers.
        dst: ``"flux"``, ``"flax"`` or ``"keras"``.
        inputs: as in `convert_layout`.
        crosscor: as in `convert_layout`.

    Returns:
        Nested dicts of tensors, which `load_foreign_state` reads. For Flux: of the structure of its
        ``Flux.state``. For Flax: the collections ``params`` and, where there are running statistics,
        ``batch_stats``. Layers of a Chain are called ``Conv_0``, ``Dense_0``, … as in a compact module of
        Flax, ``conv2d``, ``dense``, … as in a new model of Keras, or by the Chain's own names. The tensors
        may be views of the model's or the same, so clone them before you change either in place.

    Raises:
        ValueError: an unknown framework, `inputs` missing, a place of `crosscor` without a Conv, a
            stacked model, or values that can't be there, such as two biases of a GRU in Flux.
        TypeError: a tensor of a class without a rule.
        RuntimeError: the model fails on `inputs`.

    Example:
        >>> import fluxlike as fl
        >>> state = fl.foreign_state(fl.Chain(fl.Dense(2, 3), fl.Dense(3, 1)), "flax")
        >>> list(state["params"]), state["params"]["Dense_1"]["kernel"].shape
        (['Dense_0', 'Dense_1'], torch.Size([3, 1]))
    """
    require_framework("dst", dst)
    require_ranks(model, dst)
    places = crosscor_entries(model, crosscor, dst)
    there = in_framework_order(model, dst, inputs, ours=False)
    if dst != "flax":
        return Writer(dst, places, "params").nested(there, "", ())
    others = sorted(_collections(there, dst) - {"params"})
    return {c: Writer(dst, places, c).nested(there, "", ()) for c in ("params", *others)}


def _collections(model: Any, framework: str) -> set[str]:
    return {part.collection for site in sites(model, framework) for part in site.parts()} | {"params"}


def _filled(model: Any, found: dict[str, Tensor], owned: set[str]) -> dict[str, Any]:
    """What was found, on the model's devices, with the places tied to it and what no checkpoint holds."""
    leaves, treedef = flatten(model)
    where = structure_of(treedef).paths
    given = {id(x): found[path] for path, x in zip(where, leaves, strict=True) if path in found}
    result: dict[str, Any] = dict(found)
    for path, x in zip(where, leaves, strict=True):
        if path in found and isinstance(x, Tensor) and not x.is_meta:
            result[path] = found[path].to(x.device)
        elif path not in found and is_plain(x) and (path not in owned or id(x) in given):
            result[path] = given.get(id(x), x)
    return result
