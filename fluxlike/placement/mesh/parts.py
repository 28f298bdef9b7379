"""What of a tensor over a mesh is on this rank, and tensors laid out as others are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private.dtensors import local_of, of_local, spec_over

__all__ = ["empty_as", "laid_out_as", "part_of", "piece_of"]


def piece_of(mesh: DeviceMesh, rows: Sequence[Placement], /) -> tuple[int, int]:
    """Which of how many pieces of the rows this rank has, counted along the last axis of the mesh first.

    Args:
        mesh: the ranks.
        rows: how a tensor lies that is divided by its rows.
    """
    number, count = 0, 1
    for i, p in enumerate(rows):
        if isinstance(p, Shard):
            number, count = number * mesh.size(i) + mesh.get_local_rank(i), count * mesh.size(i)
    return number, count


def part_of(x: Tensor, mesh: DeviceMesh, placements: Sequence[Placement], /) -> Tensor:
    """What this rank holds of a plain tensor that is laid out so: a view, or the tensor itself.

    Pieces are of equal size, as DTensor has it, the last ones smaller or empty.
    """
    for i, p in enumerate(placements):
        if isinstance(p, Shard):
            n = x.shape[p.dim]
            size = -(-n // mesh.size(i))
            start = min(mesh.get_local_rank(i) * size, n)
            x = x.narrow(p.dim, start, min(size, n - start))
    return x


def empty_as(old: DTensor, /) -> DTensor:
    """A tensor over a mesh without values, with the layout of another, on the mesh's devices.

    Where a sum is pending in the other, the new one is whole on each rank.
    """
    placements = [Replicate() if isinstance(p, Partial) else p for p in old.placements]
    local = local_of(old).detach()
    device = torch.device(old.device_mesh.device_type) if local.is_meta else local.device
    part = torch.empty_like(local, device=device, requires_grad=False)
    new: DTensor = of_local(part, spec_over(old.device_mesh, placements, old.shape, part), type(old))
    return new


def laid_out_as(x: Tensor, old: Tensor, /) -> DTensor:
    """The values of a plain tensor, which every rank has alike, laid out as one over a mesh."""
    assert isinstance(old, DTensor)
    new = empty_as(old)
    local_of(new).copy_(part_of(x, old.device_mesh, new.placements))
    return new
