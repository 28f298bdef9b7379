"""Trees onto a mesh and back: what `to_device` does for a DeviceMesh, and `shard_batch`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private.dtensors import local_of, of_local, spec_of, spec_over
from fluxlike.placement.mesh import used
from fluxlike.placement.mesh.gathering import gathering
from fluxlike.placement.mesh.layouts import Layout, agreed_layouts
from fluxlike.placement.mesh.parts import part_of
from fluxlike.placement.mesh.plans import Plan
from fluxlike.placement.mesh.reduce import placed_as, reduce_early
from fluxlike.placement.mesh.routes import table
from fluxlike.placement.mesh.tensors import Batched, GivenAway, MeshTensor, Stored, data_dims, settled
from fluxlike.placement.mesh.unknown import explaining
from fluxlike.scope.assigned import Assigned
from fluxlike.scope.key import Key
from fluxlike.trees.fmap import fmap, fmap_with_path
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["batch_of_rows", "off_mesh", "onto_mesh", "over", "shard_batch"]


def over(x: Any, /) -> bool:
    """Whether `x` is a tensor over a mesh."""
    return isinstance(x, DTensor)


def onto_mesh(tree: Any, mesh: DeviceMesh, plan: Plan | None = None, /) -> Any:
    """A tree with all its tensors over a mesh: the parameters by a plan, all else whole on each rank.

    Without a plan, what is over the mesh already stays as it lies there. Every rank must hold the same tree.
    """
    if not isinstance(mesh, DeviceMesh):
        if plan is None and callable(mesh):
            raise TypeError(
                "to_device got a plan where the mesh stands: write to_device(tree, "
                "fluxlike.distributed.mesh(), plan)"
            )
        raise TypeError(
            f"to_device(tree, {mesh!r}): write a device, such as 'cuda', or a mesh, such as "
            "fluxlike.distributed.mesh()"
        )
    new = {id(x.tensor): _laid(x, mesh) for x in agreed_layouts(tree, mesh, plan)}

    def place(x: Any) -> Any:
        if isinstance(x, Assigned):
            return Assigned(new.get(id(x.value), x.value))
        return new.get(id(x), x)

    used.offer(_Known())
    return fmap(place, tree, leaves="all")


def _laid(x: Layout, mesh: DeviceMesh) -> Tensor:
    if x.placements is not None:
        return _put(x.tensor, mesh, x.placements)
    value = off_mesh(x.tensor)
    return value.to(mesh.device_type) if value.device.type != mesh.device_type else value


def _put(x: Tensor, mesh: DeviceMesh, placements: Sequence[Placement]) -> Tensor:
    """A tensor that every rank holds, or that is over a mesh already, with other placements."""
    if isinstance(x, DTensor):
        if x.device_mesh == mesh:
            new = x.redistribute(placements=placements) if tuple(placements) != tuple(x.placements) else x
            return new if isinstance(new, Stored) else of_local(local_of(new), spec_of(new), Stored)
        x = x.full_tensor()
    value = x.detach() if x.requires_grad else x  # where it is whole, the tensor itself, as on one device
    part = part_of(value, mesh, placements)
    moves = value.device.type != mesh.device_type and not value.is_meta
    if part.shape == value.shape:
        part = value.to(mesh.device_type) if moves else value
    elif moves:  # only this rank's part travels
        part = part.to(mesh.device_type, memory_format=torch.contiguous_format)
    else:
        part = part.clone(memory_format=torch.contiguous_format)
    return of_local(part, spec_over(mesh, placements, value.shape, value), Stored)


def off_mesh(x: Tensor, /) -> Tensor:
    """The whole tensor, plain, on each rank."""
    return x.full_tensor() if isinstance(x, DTensor) else x


def shard_batch(batch: Any, mesh: DeviceMesh, /) -> Any:
    """A batch that every rank holds, divided by its rows over the ranks that divide the data.

    Args:
        batch: any tree of tensors (N, …).
        mesh: the mesh; its axes named ``"model"`` and ``"tensor"`` don't divide data.

    Returns:
        A tree of the same structure. A tensor whose rows the ranks can't share equally is whole on each: the
        numbers are the same, and every rank computes them all.

    Raises:
        TypeError: `mesh` is no DeviceMesh.

    Example:
        >>> import torch, fluxlike as fl
        >>> x, y = fl.distributed.shard_batch((torch.ones(4, 3), torch.arange(4)), fl.distributed.mesh())
        >>> x.placements, x.shape
        ((Shard(dim=0),), torch.Size([4, 3]))
    """
    if not isinstance(mesh, DeviceMesh):
        raise TypeError(f"shard_batch(batch, {mesh!r}): the second argument is a mesh, fl.distributed.mesh()")
    dims = data_dims(mesh)
    count = math.prod(mesh.size(i) for i in dims)

    def place(path: str, x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, DTensor):
            return x
        shares = x.ndim > 0 and x.shape[0] % count == 0
        placements: list[Placement] = [
            Shard(0) if shares and i in dims else Replicate() for i in range(mesh.ndim)
        ]
        new = _put(x, mesh, placements)
        new.__class__ = Batched
        return new

    used.offer(_Known())
    return fmap_with_path(place, batch, leaves="all")


def batch_of_rows(rows: Any, mesh: DeviceMesh, total: int, /) -> Any:
    """A batch over a mesh, of which every rank gives the rows that `shard_batch` would leave it.

    Nothing travels, so all ranks must give rows of the same shape.

    Args:
        rows: any tree of tensors (n, …), on the device of this rank: its equal share of the batch; or (N, …),
            all rows on each rank. A 0-d tensor is whole on each.
        mesh: the mesh; its axes named ``"model"`` and ``"tensor"`` don't divide data.
        total: N, the rows of the whole batch.

    Returns:
        A tree of the same structure and ties.

    Raises:
        ValueError: a tensor of another number of rows.
    """
    dims = data_dims(mesh)
    count = math.prod(mesh.size(i) for i in dims)

    def place(path: str, x: Any) -> Any:
        if not isinstance(x, Tensor) or isinstance(x, DTensor):
            return x
        n = x.shape[0] if x.ndim else total
        if n != total and n * count != total:
            raise ValueError(
                f"{path or 'the tensor'} has {n} rows on this rank; of a batch of {total} rows over {count} "
                f"ranks, each gives {total // count if total % count == 0 else 'all'}"
            )
        placements: list[Placement] = [Replicate()] * mesh.ndim
        shape = list(x.shape)
        if n != total or (count == 1 and x.ndim):
            shape[0] = total
            placements = [Shard(0) if i in dims else Replicate() for i in range(mesh.ndim)]
        return of_local(x.detach(), spec_over(mesh, placements, shape, x), Batched)

    used.offer(_Known())
    return fmap_with_path(place, rows, leaves="all")


class _Known:
    """What floors above ask; see `used.Mesh`."""

    def over(self, x: Any, /) -> bool:
        return isinstance(x, DTensor)

    def place(self, x: Any, /) -> Any:
        return (type(x), spec_of(x)) if isinstance(x, DTensor) else None

    def local(self, x: Any, /) -> Any:
        return local_of(x) if isinstance(x, DTensor) else x

    def joined(self, local: Tensor, place: Any, /) -> Tensor:
        kind, spec = place
        return of_local(local, spec, kind)

    def alike(self, x: Any, y: Any, /) -> bool:
        return getattr(x, "placements", None) == getattr(y, "placements", None)

    def together(self, x: Any, y: Any, /) -> bool:
        return bool(getattr(x, "device_mesh", None) == getattr(y, "device_mesh", None))

    def where(self, x: Any, /) -> str:
        return f"over {_told(x.device_mesh)}" if isinstance(x, DTensor) else f"on {x.device}"

    def divided(self, x: Tensor, like: Tensor, /) -> Tensor:
        assert isinstance(like, DTensor)
        new = _put(x, like.device_mesh, like.placements)
        new.__class__ = type(like)
        return new

    def consumed(self, x: Any, /) -> None:
        x.__class__ = GivenAway

    def whole(self, x: Tensor, /) -> Tensor:
        return off_mesh(x)

    def require_one_mesh(self, differentiated: Sequence[Any], others: Sequence[Any], /) -> None:
        found = [(path, x) for tree in differentiated for path, x in _tensors(tree)]
        over = [(path, x) for path, x in found if isinstance(x, MeshTensor)]
        if not over:
            return
        first, mesh = over[0][0] or "the model", over[0][1].device_mesh
        given = [(number, path, x) for number, tree in enumerate(others) for path, x in _tensors(tree)]
        arguments: list[tuple[str, Tensor]] = [(path or "the model", x) for path, x in over]
        arguments += [(f"{path or 'a tensor'} of data argument {number}", x) for number, path, x in given]
        for what, x in arguments:
            if isinstance(x, DTensor) and x.device_mesh != mesh:
                raise ValueError(
                    f"{first} is over {_told(mesh)}, and {what} over {_told(x.device_mesh)}; a computation "
                    "is over one mesh: bring all to it, to_device(tree, mesh, plan) and shard_batch(batch, "
                    "mesh)"
                )
        for number, path, x in given:
            if x.ndim and not isinstance(x, DTensor):
                raise ValueError(
                    f"the model is over a mesh, and {path or 'a tensor'} of data argument {number} is on "
                    f"{x.device}; write x, y = fluxlike.distributed.shard_batch((x, y), mesh), or "
                    "to_device(tree, mesh) for what is whole on each rank"
                )

    def placed_as(self, grads: Sequence[Tensor | None], params: Sequence[Tensor], /) -> list[Tensor | None]:
        return placed_as(grads, params)

    def gathering(self, handles: Sequence[Tensor], leaves: Sequence[Any], /) -> AbstractContextManager[None]:
        reduce_early(handles)
        return gathering(leaves)

    def explaining(self) -> AbstractContextManager[None]:
        return explaining()

    def settled(self, x: Tensor, /) -> Tensor:
        return settled(x) if isinstance(x, DTensor) else x


def _told(mesh: DeviceMesh) -> str:
    names = mesh.mesh_dim_names or [f"axis {i}" for i in range(mesh.ndim)]
    return f"the mesh ({', '.join(f'{name}={n}' for name, n in zip(names, mesh.shape, strict=True))})"


def _tensors(tree: Any) -> list[tuple[str, Tensor]]:
    """The tensors of a tree, with their paths."""
    if isinstance(tree, Key):
        return []
    leaves, treedef = flatten(tree)
    paths = structure_of(treedef).paths
    return [(path, x) for path, x in zip(paths, leaves, strict=True) if isinstance(x, Tensor)]


assert table is not None  # imported for what it registers
