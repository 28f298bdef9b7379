"""Tensors laid out over a mesh as others are: empty ones, and ones with the values of a whole tensor."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from fluxlike._private.dtensors import local_of, of_local, spec_over

__all__ = ["empty_as", "laid_out_as"]


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
    part = x
    for i, placement in enumerate(new.placements):
        if isinstance(placement, Shard):
            size = -(-part.shape[placement.dim] // old.device_mesh.size(i))
            start = min(old.device_mesh.get_local_rank(i) * size, part.shape[placement.dim])
            part = part.narrow(placement.dim, start, min(size, part.shape[placement.dim] - start))
    local_of(new).copy_(part)
    return new
