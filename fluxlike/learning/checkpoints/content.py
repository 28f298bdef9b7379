"""What is in the file of a checkpoint: words about it, the plain part as bytes, and the tree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxlike.files.reader import bytes_of
from fluxlike.files.tensors import load
from fluxlike.files.verify import verify
from fluxlike.learning.checkpoints.entry import read_about, written_about
from fluxlike.learning.checkpoints.memory_order import in_order, order_of
from fluxlike.learning.checkpoints.packing import pack
from fluxlike.learning.checkpoints.together import over_mesh
from fluxlike.learning.checkpoints.unpacking import unpack
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Prepared", "content_of", "fault_of", "read_content"]


@dataclass(frozen=True)
class Prepared:
    """A checkpoint that is checked and ready to be written."""

    step: int
    content: dict[str, Any]


def content_of(step: int, tree: Any, plain: Any, scores: Mapping[str, float], /) -> dict[str, Any]:
    """The tree that the file of a checkpoint holds; the tensors are those of `tree`.

    Raises:
        TypeError, ValueError: the plain part can't be stored; its place is named.
    """
    data = torch.frombuffer(pack(plain), dtype=torch.uint8)
    return {"about": written_about(step, scores, _strides(tree)), "plain": data, "tree": tree}


def read_content(path: Path, like: Any, /) -> tuple[Any, Any]:
    """The tree and the plain part in the file of a checkpoint.

    Raises:
        ValueError: it is damaged, or does not fit `like`.
        FileNotFoundError: it is not there.
    """
    about = read_about(path)
    data = torch.empty(about.plain_size, dtype=torch.uint8, device="meta")
    content = load(path, like={"about": "", "plain": data, "tree": like})
    return _in_orders(content["tree"], about.strides), unpack(bytes_of(content["plain"]))


def fault_of(path: Path, /) -> str | None:
    """What is wrong with a checkpoint, all of which is read; None where it is whole."""
    try:
        read_about(path)
        verify(path)
    except (ValueError, OSError) as error:
        return str(error)
    return None


def _strides(tree: Any) -> dict[str, list[int]]:
    leaves, treedef = flatten(tree)
    orders = {
        path: order_of(x)
        for path, x in zip(structure_of(treedef).paths, leaves, strict=True)
        if isinstance(x, Tensor)
    }
    return {path: strides for path, strides in orders.items() if strides is not None}


def _in_orders(tree: Any, strides: Mapping[str, list[int]]) -> Any:
    if over_mesh(tree):  # laid out as the tree that was to be filled
        return tree
    leaves, treedef = flatten(tree)
    placed: dict[int, Tensor] = {}  # once, so that ties stay ties
    for i, (path, x) in enumerate(zip(structure_of(treedef).paths, leaves, strict=True)):
        if isinstance(x, Tensor):
            if id(x) not in placed:
                placed[id(x)] = in_order(x, strides.get(path))
            leaves[i] = placed[id(x)]
    return treedef.unflatten(leaves)
