"""The tensors of a tree by the names under which a file stores them, and what it says of every leaf."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike._private.fake import is_stand_in
from fluxlike.files import description
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Naming", "as_stored"]


class Naming:
    """The tensors of a tree, each once, under the path of its first place.

    Attributes:
        tensors: as they stand in the tree, by name.
        entries: what a file says of each leaf, by path.

    Raises:
        ValueError: a tensor without data, or of a layout that safetensors lack.
    """

    def __init__(self, tree: Any, /) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._names: dict[int, str] = {}
        leaves, treedef = flatten(tree)
        where = structure_of(treedef).paths
        self.entries = {p: self._entry(p, x) for p, x in zip(where, leaves, strict=True)}

    def _entry(self, path: str, x: Any) -> dict[str, Any]:
        if isinstance(x, Tensor):
            return {"tensor": self._named(path, x), **_view(x)}
        if isinstance(x, Assigned):
            return {"assigned": self._named(path, x.value), **_view(x.value)}
        if isinstance(x, (np.ndarray, np.generic)):
            kind = "array" if isinstance(x, np.ndarray) else "scalar"
            try:
                tensor = torch.from_numpy(np.array(x))
            except (TypeError, ValueError):  # of no such dtype, of the other byte order
                swapped = "" if x.dtype.isnative else f": write x.astype({x.dtype.newbyteorder('=').name!r})"
                raise ValueError(
                    f"{path or 'the root'} is a numpy array of {x.dtype}, which can't be saved{swapped}"
                ) from None
            return {kind: self._named(path, tensor), **_view(tensor)}
        return description.plain_entry(x)

    def _named(self, path: str, x: Tensor) -> str:
        if id(x) in self._names:
            return self._names[id(x)]
        if x.is_meta:
            raise ValueError(f"{path or 'the tensor'} is on the meta device, which holds no data to save")
        if is_stand_in(x):
            raise ValueError(
                f"{path or 'the tensor'} is a FakeTensor, a stand-in while a function is traced, which "
                "holds no data to save; save what the compiled function returns, outside of it"
            )
        if x.layout is not torch.strided or x.is_quantized or x.is_nested:
            kind = "nested" if x.is_nested else x.dtype if x.is_quantized else x.layout
            raise ValueError(
                f"{path or 'the tensor'} is {kind}, which safetensors can't hold; save its parts, or "
                "x.to_dense()"
            )
        name = path or "tree"
        self._names[id(x)] = name
        self.tensors[name] = x  # which keeps its id from being used again
        return name


def _view(x: Tensor) -> dict[str, str]:
    return {"as": "complex128"} if x.dtype == torch.complex128 else {}


def as_stored(x: Tensor, /) -> Tensor:
    """A tensor without a graph and pending signs, of a dtype that the format has; no copy, if it can be."""
    x = x.detach().resolve_conj().resolve_neg()
    return torch.view_as_real(x) if x.dtype == torch.complex128 else x
