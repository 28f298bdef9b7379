"""What a checkpoint says of one layer: our tensors by path, and what is wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.placement.foreign.alignment import Match, is_array, named_arrays
from fluxlike.placement.foreign.parameters import Part, slots
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
        try:
            arrays = {match.site.rule.rename(n): x for n, x in named_arrays(match.found, parts).items()}
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
        x = self._match.found
        if is_array(x):
            self.found[self._match.path] = _tensor(x)
        else:
            self.faults[self._match.path] = f"{self._who()} finds a {type(x).__name__}, no array"

    def _part(self, part: Part, arrays: dict[str, Any]) -> None:
        taken = []
        for name in part.theirs:
            known = next((n for n in name.split("|") if n in arrays), None)
            taken.append(None if known is None else _tensor(arrays.pop(known)))
        missing = [n.split("|")[0] for n, x in zip(part.theirs, taken, strict=True) if x is None]
        place = self._match.path + part.ours[0]
        if missing:
            self.faults[place] = f"{self._who()} finds no {', '.join(missing)}"
            return
        try:
            values = part.read(*taken)
        except (ValueError, RuntimeError) as error:
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


def _tensor(x: Any) -> Tensor:
    """An array as a tensor, which may share its memory; JAX' arrays come by way of numpy."""
    if isinstance(x, Tensor):
        return value_of(x)
    array = np.asarray(x)
    if array.dtype.name == "bfloat16":  # numpy has it from the package ml_dtypes, torch does not know that
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    native = array.astype(array.dtype.newbyteorder("="), copy=True)  # torch takes no other order of bytes
    return torch.from_numpy(np.ascontiguousarray(native).reshape(array.shape))
