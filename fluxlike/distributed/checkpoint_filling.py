"""A tree laid out as another, to be filled with what a checkpoint holds."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fluxlike._private.dtensors import local_of, of_local, spec_over
from fluxlike.distributed.checkpoint_source import Source
from fluxlike.files.description import STORED, Description
from fluxlike.files.fitting import fitted
from fluxlike.files.naming import as_stored
from fluxlike.files.placing import require_model
from fluxlike.placement.mesh.parts import empty_as
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Filling", "as_stored_part"]


class Filling:
    """Empty tensors for all that a source holds, in the layout of a tree.

    Args:
        source: what is stored.
        like: the tree.

    Attributes:
        targets: the tensors to be filled, by a key, as they are stored: complex128 as pairs of float64.
        names: for each key, the name under which the values are stored.

    Raises:
        ValueError: a leaf is missing, is not in the tree, or has another shape, dtype, type, name or setting.
        TypeError: `like` is a class, or a module of torch.
    """

    def __init__(self, source: Source, like: Any, /) -> None:
        require_model(like)
        self._title = source.title
        self._old, self._treedef = flatten(like)
        structure = structure_of(self._treedef)
        self._paths, self._trainable = structure.paths, structure.trainable
        stored = {p: _name(entry) for p, entry in source.about.leaves.items() if _is_stored(entry)}
        empty = {
            name: torch.empty(x.shape, dtype=x.dtype, device="meta") for name, x in source.tensors.items()
        }
        about = self._with_ties(source.about, stored, empty)
        self._leaves = flatten(fitted(source.title, about, empty, like))[0]
        self.targets: dict[str, Tensor] = {}
        self.names: dict[str, str] = {}
        self._new: dict[tuple[int, str], Tensor] = {}  # by a tensor of `like` and a name that is stored
        self._at: dict[int, tuple[int, str]] = {}
        for i, (path, old) in enumerate(zip(self._paths, self._old, strict=True)):
            if path in stored and isinstance(old, (Tensor, Assigned, np.ndarray, np.generic)):
                at = self._at[i] = (id(old), stored[path])
                if at not in self._new:
                    self._new[at] = new = _empty(old)
                    key = str(len(self.names))
                    self.targets[key], self.names[key] = as_stored_part(new), stored[path]

    def _with_ties(self, about: Description, stored: dict[str, str], empty: dict[str, Tensor]) -> Description:
        """The description as if what is tied in the tree were stored once, where it is of one form."""
        first: dict[int, str] = {}
        leaves = dict(about.leaves)
        for path, old in zip(self._paths, self._old, strict=True):
            if path in stored and isinstance(old, Tensor):
                one = first.setdefault(id(old), path)
                a, b = empty[stored[one]], empty[stored[path]]
                views = [{k: v for k, v in leaves[p].items() if k == "as"} for p in (one, path)]
                if (a.shape, a.dtype) == (b.shape, b.dtype) and views[0] == views[1]:
                    leaves[path] = {**leaves[path], next(iter(leaves[path])): stored[one]}
        return dataclasses.replace(about, leaves=leaves)

    def tree(self) -> Any:
        """The tree, once all targets are filled.

        Raises:
            ValueError: places that are tied in the tree were saved with different values.
        """
        first: dict[int, tuple[str, Tensor]] = {}
        faults = []
        for i, at in self._at.items():
            old, new, path = self._old[i], self._new[at], self._paths[i]
            if isinstance(old, Tensor):
                one, value = first.setdefault(id(old), (path, new))
                if value is new or _equal(value, new):
                    new = value
                elif old.ndim or self._trainable[i]:
                    faults.append(f"{path} is tied to {one} in the model, but their values differ")
                # else a counter of an optimiser's state, which parameters share until they part
            self._leaves[i] = _as(old, new)
        if faults:
            raise ValueError(f"{self._title} does not fit the model:\n  " + "\n  ".join(faults[:10]))
        return self._treedef.unflatten(self._leaves)


def _is_stored(entry: dict[str, Any]) -> bool:
    return next(iter(entry)) in STORED


def _name(entry: dict[str, Any]) -> str:
    return next(iter(entry.values())) or "tree"


def _empty(old: Any) -> Tensor:
    if isinstance(old, Assigned):
        return _empty(old.value)
    if isinstance(old, DTensor):
        return empty_as(old)
    if isinstance(old, Tensor):
        device = torch.device("cpu") if old.is_meta else old.device
        return torch.empty_like(old.detach(), device=device)
    return torch.empty(old.shape, dtype=torch.from_numpy(np.zeros((), old.dtype)).dtype, device="cpu")


def _as(old: Any, new: Tensor) -> Any:
    if isinstance(old, Assigned):
        return Assigned(new)
    if isinstance(old, np.ndarray):
        return new.numpy()
    return new.numpy()[()] if isinstance(old, np.generic) else new


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether the values are equal, of what this rank holds of them."""
    if isinstance(a, DTensor) and isinstance(b, DTensor):
        a, b = local_of(a), local_of(b)
    return bool((a == b).logical_or((a != a) & (b != b)).all())


def as_stored_part(x: Tensor, /) -> Tensor:
    """A tensor as it is stored; of one over a mesh, what this rank holds in the same memory, if it can be."""
    if not isinstance(x, DTensor):
        return as_stored(x)
    local = as_stored(local_of(x))
    shape = (*x.shape, 2) if x.dtype == torch.complex128 else x.shape
    part: DTensor = of_local(local, spec_over(x.device_mesh, x.placements, shape, local))
    return part
