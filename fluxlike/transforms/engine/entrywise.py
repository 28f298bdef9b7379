"""Derivatives entry by entry: a pass of reverse or forward mode for each, mapped by ``vmap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.transforms.engine.motors import Afterwards
from fluxlike.transforms.engine.over_mesh import Region
from fluxlike.transforms.pullback import Pulled

__all__ = ["Blocks", "OverMesh", "check_chunk_size", "check_real", "mapped", "rows", "tree_of_trees"]

#: For each tensor of an output, for each parameter: a tensor of shape output.shape + parameter.shape.
Blocks = Sequence[Sequence[Tensor | None]]


def rows(
    pulled: Pulled,
    k: int,
    *,
    differentiable: bool,
    region: Region,
    chunk_size: int | None = None,
    wanted: Sequence[Tensor] | None = None,
    take: Callable[[int, Tensor], Tensor] | None = None,
) -> list[Tensor | None]:
    """The derivatives of every entry of one tensor of an output, in reverse mode.

    Args:
        pulled: the forward pass.
        k: which tensor of its output.
        differentiable: whether the result is to be differentiated.
        region: says which of the rows this rank computes.
        chunk_size: how many rows are pulled back at once. (default: all)
        wanted: the handles to differentiate by. (default: all)
        take: what to keep of some rows, given the number of the first. (default: all of them)

    Returns:
        For each handle wanted a tensor of shape (rows, *handle.shape), or what was taken of it; None where it
        is not reached. On one device there are tensor.numel() rows.
    """
    wanted = pulled.call.handles if wanted is None else wanted

    def pull(cotangent: Tensor) -> Sequence[Tensor | None]:
        cotangents: list[Tensor | None] = [None] * len(pulled.output.tensors)
        cotangents[k] = cotangent
        return pulled.pull(cotangents, create_graph=differentiable, handles=wanted)

    y = pulled.output.tensors[k]
    return mapped(pull, y, chunk_size, take, region.entries(y))


def mapped(
    f: Callable[[Tensor], Sequence[Tensor | None]],
    like: Tensor,
    chunk_size: int | None,
    take: Callable[[int, Tensor], Tensor] | None = None,
    entries: range | None = None,
) -> list[Tensor | None]:
    """What `f` gives for each unit vector in the shape of a tensor, stacked; None where it gives None.

    Args:
        f: gives tensors, or None at the same places each time.
        like: the tensor.
        chunk_size: how many vectors there are at once. (default: all)
        take: what to keep of some results, given the number of the first. (default: all of them)
        entries: for which entries of the tensor. (default: all)
    """
    reached: list[bool] = []

    def present(unit: Tensor) -> list[Tensor]:
        found = f(unit)
        reached[:] = [x is not None for x in found]
        return [unit.new_zeros(()), *[x for x in found if x is not None]]  # vmap asks for at least one

    entries = range(like.numel()) if entries is None else entries
    count, start = len(entries), entries.start
    parts: list[list[Tensor]] = []
    entry = torch.arange(like.numel(), device=like.device)
    for some in entry[start : entries.stop].split(chunk_size or count) if count else ():
        units = (some[:, None] == entry).to(like.dtype).reshape(-1, *like.shape)
        found = torch.func.vmap(present, randomness="same")(units)[1:]
        parts.append([x if take is None else take(start, x) for x in found])
        start += len(some)
    if not count:  # no vector to map over: only which results there are
        parts.append([x.new_zeros(0, *x.shape) for x in present(torch.zeros_like(like))[1:]])
    stacked = (torch.cat(part) if len(part) > 1 else part[0] for part in zip(*parts, strict=True))
    return [next(stacked) if one else None for one in reached]


def tree_of_trees(pulled: Pulled, blocks: Blocks, closer: Afterwards, region: Region) -> Any:
    """The tree of an output, with a tree of an argument in the place of each tensor."""
    trees = []
    for y, row in zip(pulled.output.tensors, blocks, strict=True):
        pairs = zip(pulled.call.handles, row, strict=True)
        shape = region.shape_of_part(y)
        shaped = [None if block is None else block.reshape(shape + x.shape) for x, block in pairs]
        trees.append(pulled.call.trees(shaped, OverMesh(closer, region, y), assigned_too=False))
    return pulled.output.tree(trees)


class OverMesh:
    """Closes what a rank has computed of some entries, which are those of all ranks then.

    Args:
        closer: what closes it here.
        region: where it was computed.
        y: the tensor with all these entries.
    """

    def __init__(self, closer: Afterwards, region: Region, y: Tensor) -> None:
        self._closer, self._region = closer, region
        self._axis = 0 if region.shape_of_part(y) != y.shape else None
        self.concrete = closer.concrete

    def close(self, x: Tensor, /) -> Tensor:
        return self._region.joined(self._closer.close(x), self._axis)


def check_real(name: str, pulled: Pulled) -> None:
    """Raise where an argument or an output is complex."""
    for what, tensors in (("output", pulled.output.tensors), ("argument", pulled.call.handles)):
        if any(x.is_complex() for x in tensors):
            raise ValueError(
                f"{name}: the {what} is complex, where one number does not hold a derivative; differentiate "
                "torch.view_as_real of it"
            )


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise unless it is a number of entries to compute at once, or None."""
    if chunk_size is not None and (type(chunk_size) is not int or chunk_size < 1):
        raise ValueError(f"chunk_size={chunk_size!r}: write a whole number of at least 1, or None")
