"""The one file that calls torch's functional collectives, which eager code and traces take alike."""

from __future__ import annotations

import torch
import torch.distributed._functional_collectives  # defines the operators
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fluxlike._private import tracing
from fluxlike._private.fake import without_values

__all__ = ["all_gather", "all_reduce", "finished", "reduce_scatter", "start_all_reduce"]

_collectives = torch.ops._c10d_functional


def all_reduce(x: Tensor, mesh: DeviceMesh, dim: int, /, op: str = "sum") -> Tensor:
    """The sum of the ranks' tensors along an axis of a mesh."""
    group = mesh.get_group(dim).group_name
    return _collectives.wait_tensor(_collectives.all_reduce(x.contiguous(), op, group))


def start_all_reduce(x: Tensor, mesh: DeviceMesh, dim: int, /) -> Tensor:
    """Begin to sum the ranks' tensors, over the memory of this one where nothing is traced.

    Returns:
        What `finished` gives the sum of.
    """
    group = mesh.get_group(dim).group_name
    if tracing.concrete() or without_values():
        return _collectives.all_reduce_(x, "sum", group)
    return _collectives.all_reduce(x, "sum", group)


def finished(x: Tensor, /) -> Tensor:
    """The result of a collective that was started."""
    return _collectives.wait_tensor(x)


def all_gather(x: Tensor, mesh: DeviceMesh, dim: int, /) -> Tensor:
    """The ranks' tensors of equal shape along an axis of a mesh, one after another in the first axis."""
    group, n = mesh.get_group(dim).group_name, mesh.size(dim)
    return _collectives.wait_tensor(_collectives.all_gather_into_tensor(x.contiguous(), n, group))


def reduce_scatter(x: Tensor, mesh: DeviceMesh, dim: int, /, op: str = "sum") -> Tensor:
    """This rank's part, in the first axis, of the sum of the ranks' tensors along an axis of a mesh."""
    group, n = mesh.get_group(dim).group_name, mesh.size(dim)
    return _collectives.wait_tensor(_collectives.reduce_scatter_tensor(x.contiguous(), op, n, group))
