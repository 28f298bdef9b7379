"""What a checkpoint says of one layer: our tensors by path, and what is wrong."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.placement.foreign.alignment import Match
from fluxlike.placement.foreign.checkpoint import holds_arrays, is_array
from fluxlike.placement.foreign.parameters import slots
from fluxlike.placement.foreign.parts import Part
from fluxlike.trees.values import value_of

__all__ = ["Reading"]


class Reading:
    """What a checkpoint says of one layer: our tensors by path, and what is wrong."""

    def __init__(self, match: Match, parts: list[Part]) -> None:
        self.found: dict[str, Tensor] = {}
        self.faults: dict[str, str] = {}
        self._match = match
        if match.site is None:
            self.owned = [match.path]
            self._lone()
            return
        self.owned = [match.path + path for part in parts for path in part.ours]
        rename = match.site.rule.rename
        try:
            named = _named_arrays(match.found, parts)
            arrays = _unique((rename(name), x) for name, x in named.items())
        except (TypeError, ValueError) as error:
            self.faults[match.path] = f"{self._who()} finds {error}"
            return
        for part in parts:
            self._part(part, arrays)
        for name, x in arrays.items():
            if x.ndim:
                self.faults[f"{match.path} {name}"] = (
                    f"{self._who()} has no place for {name}, of the shape {tuple(x.shape)}"
                )

    def _who(self) -> str:
        site = self._match.site
        name = f" ({type(site.layer).__name__})" if site is not None else ""
        return f"{self._match.path or 'the root'}{name}, from {self._match.place or 'the root of the state'},"

    def _lone(self) -> None:
        x, path = self._match.found, self._match.path
        if not is_array(x):
            self.faults[path] = f"{self._who()} finds a {type(x).__name__}, no array"
            return
        try:
            self.found[path] = _tensor(x).clone(memory_format=torch.contiguous_format)
        except ValueError as error:
            self.faults[path] = f"{self._who()} finds {error}"

    def _part(self, part: Part, arrays: dict[str, Any]) -> None:
        taken = []
        for name in part.theirs:
            known = next((n for n in name.split("|") if n in arrays), None)
            taken.append(None if known is None else arrays.pop(known))
        missing = [n.split("|")[0] for n, x in zip(part.theirs, taken, strict=True) if x is None]
        place = self._match.path + part.ours[0]
        if missing:
            self.faults[place] = f"{self._who()} finds no {', '.join(missing)}"
            return
        try:
            values = part.read(*map(_tensor, taken))
        except (ValueError, IndexError, RuntimeError) as error:
            self.faults[place] = f"{self._who()} can't take {', '.join(part.theirs)}: {error}"
            return
        site = self._match.site
        assert site is not None
        for path, (_, old), x in zip(part.ours, slots(site, part), values, strict=True):
            if old is not None and x is not None:
                self.found[self._match.path + path] = x.clone(memory_format=torch.contiguous_format)
            elif x is not None and bool(x.any()):
                told = f"{self._who()} finds {', '.join(part.theirs)}, and there is no {path} here"
                self.faults[self._match.path + path] = told


def _named_arrays(found: Any, parts: Sequence[Part]) -> dict[str, Any]:
    """The arrays of one layer by dotted name; those of a list have the names of the parts in order."""
    while isinstance(found, (Mapping, list, tuple)):  # wrappers such as "cell"
        items = [x for x in (found.values() if isinstance(found, Mapping) else found) if holds_arrays(x)]
        if len(items) != 1 or is_array(items[0]):
            break
        (found,) = items
    if isinstance(found, Mapping):
        return _unique((name, x) for name, x in _dotted(found) if is_array(x))
    if not is_array(found) and not isinstance(found, (list, tuple)):
        raise ValueError("None" if found is None else f"a {type(found).__name__}, no arrays")
    names = [name.split("|")[0] for part in parts for name in part.theirs]
    arrays = [found] if is_array(found) else [x for x in found if is_array(x)]
    if len(arrays) != len(names):
        raise ValueError(f"{len(arrays)} arrays, where {len(names)} are expected: {', '.join(names)}")
    return dict(zip(names, arrays, strict=True))


def _dotted(found: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    result: list[tuple[str, Any]] = []
    for key, x in found.items():
        inner = _dotted(x) if isinstance(x, Mapping) else None
        result += [(str(key), x)] if inner is None else [(f"{key}.{name}", y) for name, y in inner]
    return result


def _unique(named: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, x in named:
        if name in result:
            raise ValueError(f"two arrays of the name {name}")
        result[name] = x
    return result


def _tensor(x: Any) -> Tensor:
    """An array as a tensor, which may share its memory; JAX' arrays come by way of numpy."""
    if isinstance(x, Tensor):
        return value_of(x)
    array = np.asarray(x)
    if array.dtype.name == "bfloat16":  # numpy has it from the package ml_dtypes, torch does not know that
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    native = array.astype(array.dtype.newbyteorder("="), copy=True)  # torch takes no other order of bytes
    try:
        return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
    except TypeError:
        raise ValueError(f"an array of the dtype {array.dtype}, which torch does not have") from None
