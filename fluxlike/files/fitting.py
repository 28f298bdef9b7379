"""What a file describes put into a tree of the structure expected, or every difference named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.files import description
from fluxlike.files.description import STORED, Description, Places
from fluxlike.files.printing import shown
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.state_dict import fit, is_plain
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["fitted"]


def fitted(title: str, about: Description, tensors: Mapping[str, Tensor], like: Any, /) -> Any:
    """A tree of the structure and ties of `like`, with the values that a file describes.

    Args:
        title: the file, in errors.
        about: what the file says of its tree.
        tensors: by name, those that are stored; on the meta device, to be compared only.
        like: the tree expected.

    Raises:
        ValueError: a leaf is missing, is not in `like`, or has another shape, dtype, type, name or setting;
            or the description can't be read.
    """
    found = _values(title, about, tensors)
    leaves, treedef = flatten(like)
    where = structure_of(treedef).paths
    differing = description.compare_nodes(like, about.nodes)
    places = Places(differing)
    wanted = {p: x for p, x in zip(where, leaves, strict=True) if not places.above(p)}
    found = {p: x for p, x in found.items() if not places.above(p)}
    names = {p: x for p, x in about.names().items() if not places.above(p)}
    faults = [fault for p, fault in differing.items() if not places.above(p)]
    faults += description.compare_names(wanted, names, found)
    plain = {p: x for p, x in found.items() if p not in wanted or is_plain(wanted[p])}
    known = {p for p in where if p not in wanted or (p in names and is_plain(wanted[p]))}
    return fit(like, plain, what=title, faults=faults, skip=known)


def _values(title: str, about: Description, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The values by path."""
    viewed: dict[str, tuple[bool, str | None, Tensor]] = {}  # once, so that ties stay ties
    found: dict[str, Any] = {}
    try:
        for p, entry in about.leaves.items():
            kind = next(iter(entry))
            if kind not in STORED:
                if kind != "name":
                    found[p] = description.plain_value(entry)
                continue
            name = entry[kind] or "tree"
            in_numpy, view = kind in ("array", "scalar"), entry.get("as")
            if name not in viewed:
                x = torch.view_as_complex(tensors[name]) if view else tensors[name]
                viewed[name] = in_numpy, view, x
            elif viewed[name][:2] != (in_numpy, view):
                raise ValueError(f"{shown(p)} is {shown(name)} in another view")
            found[p] = _as_kind(kind, viewed[name][2])
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{title} has a header that can't be read: {error}") from error
    return found


def _as_kind(kind: str, x: Tensor) -> Any:
    if kind == "tensor":
        return x
    if kind == "assigned":
        return Assigned(x)
    if x.is_meta:  # a shape alone, to be compared
        array = np.broadcast_to(torch.empty((), dtype=x.dtype, device="cpu").numpy(), x.shape)
        return array[()] if kind == "scalar" else array
    return x.numpy() if kind == "array" else x.numpy()[()]
