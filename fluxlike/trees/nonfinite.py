"""Looking for NaN and infinity in a tree."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["find_nonfinite"]


def find_nonfinite(tree: Any, /) -> dict[str, str]:
    """Name the places of a tree that hold NaN or infinity.

    Args:
        tree: a model, gradients, a state, or any other tree.

    Returns:
        From path to what was found there, empty where all numbers are finite. A tied tensor is
        named at its first place; what a layer assigned is looked at too.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.find_nonfinite({"w": torch.tensor([1.0, float("nan")]), "b": torch.zeros(2)})
        {"['w']": '1 of 2 is NaN'}
    """
    leaves, treedef = flatten(tree)
    seen: set[int] = set()
    found = {}
    for i, x in enumerate(leaves):
        value = _numbers(x.value if isinstance(x, Assigned) else x)
        if value is None or id(x) in seen:
            continue
        seen.add(id(x))
        if not bool(torch.isfinite(value).all()):
            found[structure_of(treedef).paths[i]] = _say(value)
    return found


def _numbers(x: Any) -> Tensor | None:
    """The floating or complex numbers in a leaf, if it has any."""
    if isinstance(x, (float, complex)):
        return torch.tensor(x)
    if isinstance(x, (np.ndarray, np.generic)) and x.dtype.kind in "fc":
        return torch.from_numpy(np.array(x))
    if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) and not x.is_meta:
        return x if x.layout is torch.strided else x.coalesce().values() if x.is_sparse else x.to_dense()
    return None


def _say(x: Tensor) -> str:
    nan, total = int(torch.isnan(x).sum()), x.numel()
    infinite = total - nan - int(torch.isfinite(x).sum())
    counts = [(nan, "NaN"), (infinite, "infinite")]
    parts = [f"{n} of {total} {'is' if n == 1 else 'are'} {kind}" for n, kind in counts if n]
    return ", ".join(parts)
