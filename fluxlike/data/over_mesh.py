"""Batches over a mesh of ranks: each makes its share, and all read in one order."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fluxlike.data.epoch import Epoch
from fluxlike.data.prefetch import moved
from fluxlike.data.share import Share
from fluxlike.trees.structure import flatten

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["agreed_epoch", "local_device", "over_mesh"]


def local_device(mesh: DeviceMesh, /) -> torch.device:
    """The device of this rank."""
    if mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(mesh.device_type)


def over_mesh(
    made: Iterable[Any], sizes: Iterable[int] | None, share: Share, mesh: DeviceMesh, /
) -> Iterator[Any]:
    """The batches of all ranks, from those that this rank makes.

    Args:
        made: batches, whole or this rank's share of them.
        sizes: how many rows the batches have of which this rank made its share; None for whole ones.
        share: this rank's.
        mesh: the ranks.
    """
    from fluxlike.placement.mesh.place import batch_of_rows  # torch.distributed takes a while to import

    parts = _narrowed(made, share) if sizes is None else _with_sizes(made, sizes)
    for leaves, rows, treedef in moved(parts, local_device(mesh)):
        placed: dict[int, Any] = {}
        for x, n in zip(leaves, rows, strict=True):
            if isinstance(x, Tensor) and id(x) not in placed:
                placed[id(x)] = batch_of_rows(x, mesh, n)
        yield treedef.unflatten([placed.get(id(x), x) for x in leaves])


Part = tuple[list[Any], list[int], Any]
"""Leaves, how many rows each has on all ranks together, and what they are leaves of."""


def _with_sizes(made: Iterable[Any], sizes: Iterable[int]) -> Iterator[Part]:
    for batch, n in zip(made, sizes, strict=True):
        leaves, treedef = flatten(batch)
        yield leaves, [n] * len(leaves), treedef


def _narrowed(made: Iterable[Any], share: Share) -> Iterator[Part]:
    for batch in made:
        leaves, treedef = flatten(batch)
        known = {id(x): share.narrowed(x) for x in leaves if isinstance(x, Tensor) and x.ndim}
        rows = [x.shape[0] if id(x) in known else 1 for x in leaves]
        yield [known.get(id(x), x) for x in leaves], rows, treedef


def agreed_epoch(epoch: Epoch, drawn: bool, settings: dict[str, int], mesh: DeviceMesh, /) -> Epoch:
    """An epoch that is the same on all ranks.

    Args:
        epoch: this rank's.
        drawn: whether its key was drawn from torch's generator just now: then that of the first rank counts.
        settings: other numbers by name that must be the same on all ranks.
        mesh: the ranks.

    Raises:
        ValueError: the ranks have different settings or keys.
    """
    if mesh.size() == 1:
        return epoch
    from fluxlike.placement.mesh.agreement import gathered_numbers, ranks_of

    low, high = epoch.words or (0, 0)
    own = {**settings, "epoch": epoch.number, "drawn": drawn, "low": low, "high": high}
    first, *others = gathered_numbers([int(x) for x in own.values()], mesh)
    compared = len(own) - (2 if drawn else 0)
    for rank, other in zip(ranks_of(mesh)[1:], others, strict=True):
        for name, a, b in list(zip(own, first, other, strict=True))[:compared]:
            if a != b:
                raise ValueError(_differ(name, a, b, ranks_of(mesh)[0], rank))
    if not drawn:
        return epoch
    low, high = first[-2:]
    return replace(epoch, words=(low, high))


def _differ(name: str, a: int, b: int, first: int, rank: int) -> str:
    if name in ("low", "high", "drawn"):
        return (
            f"the ranks of the mesh draw from different keys: rank {first} and rank {rank} would read other "
            "rows of other batches; give all the same, DataLoader(…, key=fluxlike.Key(0)), or none"
        )
    return (
        f"the DataLoaders of the ranks of a mesh differ: {name} is {a} on rank {first} and {b} on rank "
        f"{rank}; make them alike on all ranks: each has the whole data, and reads its own rows of it"
    )
