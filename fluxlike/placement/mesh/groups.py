"""Sharded parameters that travel together: gathered by one collective, their gradients scattered by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private import collectives
from fluxlike._private.dtensors import beneath, local_of, of_local, spec_over
from fluxlike.placement.mesh.tensors import Stored, data_dims

__all__ = ["Group", "grouped"]

_GROUP = 16 << 20  # bytes of whole parameters that travel at once


def grouped(tensors: Sequence[Any], /) -> Iterator[Group]:
    """Groups of those among some tensors that are divided over the data, in their order."""
    by_kind: dict[Any, dict[int, DTensor]] = {}
    for x in tensors:
        axis = _divided_axis(x)
        if axis is not None:
            alike = by_kind.setdefault((x.device_mesh, axis, x.dtype, x.requires_grad), {})
            alike[id(x)] = x
    for (_, axis, _, _), members in by_kind.items():
        for part in _at_a_time(list(members.values())):
            yield Group(part, axis)


class Member:
    """One parameter of a group.

    Attributes:
        handle: the parameter, divided.
        dim: the axis along which it is divided.
        shape: that of the whole, as far as this axis of the mesh divides it.
        chunk: the shape of the largest part.
        placements: those of the whole.
    """

    def __init__(self, handle: DTensor, axis: int) -> None:
        self.handle = handle
        placement = handle.placements[axis]
        assert isinstance(placement, Shard)
        local, n = local_of(handle), handle.device_mesh.size(axis)
        self.dim = placement.dim
        self.shape = list(local.shape)
        self.shape[self.dim] = handle.shape[self.dim]
        self.chunk = list(local.shape)
        self.chunk[self.dim] = -(-self.shape[self.dim] // n)
        placements: list[Placement] = list(handle.placements)
        placements[axis] = Replicate()
        self.placements = placements

    @property
    def size(self) -> int:
        """The numbers of the largest part."""
        return int(torch.Size(self.chunk).numel())

    def flat(self, local: Tensor) -> Tensor:
        """A part, filled up to the largest, as a vector."""
        missing = self.chunk[self.dim] - local.shape[self.dim]
        if missing:
            shape = [*self.chunk]
            shape[self.dim] = missing
            local = torch.cat((local, local.new_zeros(shape)), self.dim)
        return local.reshape(-1)

    def whole(self, flats: Tensor) -> Tensor:
        """The whole from the vectors of all parts, (n, size)."""
        parts = flats.reshape(-1, *self.chunk)
        flat = self.dim == 0
        joined = parts.reshape(-1, *self.chunk[1:]) if flat else torch.cat(parts.unbind(0), self.dim)
        return joined.narrow(self.dim, 0, self.shape[self.dim]).contiguous()

    def parts(self, whole: Tensor, n: int) -> Tensor:
        """The vectors of all parts of a whole, (n, size)."""
        missing = self.chunk[self.dim] * n - whole.shape[self.dim]
        if missing:
            shape = [*whole.shape]
            shape[self.dim] = missing
            whole = torch.cat((whole, whole.new_zeros(shape)), self.dim)
        if self.dim == 0:
            return whole.reshape(n, -1)
        return torch.stack(whole.chunk(n, self.dim)).reshape(n, -1)

    def part(self, flat: Tensor) -> Tensor:
        """The part of this rank from its vector."""
        size = local_of(self.handle).shape[self.dim]
        return flat.reshape(self.chunk).narrow(self.dim, 0, size)


class Group:
    """Parameters that are divided over one axis of a mesh and travel together.

    Attributes:
        members: the parameters.
        gathered: whether they were gathered once; after that, each is gathered alone.
    """

    def __init__(self, handles: Sequence[DTensor], axis: int) -> None:
        self.axis, self.mesh = axis, handles[0].device_mesh
        self.members = [Member(h, axis) for h in handles]
        self.gathered = False

    def over_mesh(self, k: int, whole: Tensor) -> DTensor:
        """A member from its whole, without a graph."""
        member = self.members[k]
        return of_local(whole, spec_over(self.mesh, member.placements, member.handle.shape, whole))

    def wholes(self, numbers: Sequence[int]) -> list[Tensor]:
        """The whole members of some numbers, by one collective."""
        members = [self.members[i] for i in numbers]
        flats = [m.flat(local_of(m.handle).detach()) for m in members]
        n = self.mesh.size(self.axis)
        together = torch.cat(flats) if len(flats) > 1 else flats[0]
        everything = collectives.all_gather(together, self.mesh, self.axis).reshape(n, -1)
        pieces = everything.split([m.size for m in members], 1)
        return [m.whole(piece) for m, piece in zip(members, pieces, strict=True)]

    def scattered(self, numbers: Sequence[int], grads: Sequence[DTensor | None]) -> list[DTensor | None]:
        """The gradients of the parts from those of wholes."""
        result: list[DTensor | None] = [None] * len(grads)
        pending: list[int] = []
        n = self.mesh.size(self.axis)
        for j, (i, g) in enumerate(zip(numbers, grads, strict=True)):
            if g is None:
                continue
            member = self.members[i]
            wants = [*g.placements]
            for axis, p in enumerate(wants):  # as the parameter is divided along all other axes
                if axis == self.axis:
                    continue
                if not (isinstance(p, Partial) and isinstance(member.placements[axis], Replicate)):
                    wants[axis] = member.placements[axis]
            if not isinstance(wants[self.axis], Partial):
                wants[self.axis] = Replicate()
            if tuple(wants) != tuple(g.placements):
                g = _placed(g, wants)
            placement = wants[self.axis]
            if isinstance(placement, Partial) and placement.reduce_op in ("sum", "avg"):
                pending.append(j)
                result[j] = g
            else:
                whole = local_of(g if not isinstance(placement, Partial) else _placed(g, member.placements))
                flat = member.parts(whole, n)[self.mesh.get_local_rank(self.axis)]
                result[j] = self._divided(member, flat, wants)
        if pending:
            self._scatter(pending, numbers, result, n)
        return result

    def _scatter(self, pending: list[int], numbers: Sequence[int], result: list[Any], n: int) -> None:
        by_op: dict[str, list[int]] = {}
        for j in pending:
            by_op.setdefault(result[j].placements[self.axis].reduce_op, []).append(j)
        for op, js in by_op.items():
            members = [self.members[numbers[j]] for j in js]
            flats = [m.parts(local_of(result[j]), n) for m, j in zip(members, js, strict=True)]
            together = torch.cat(flats, 1) if len(flats) > 1 else flats[0]
            mine = collectives.reduce_scatter(together.reshape(-1), self.mesh, self.axis)
            if op == "avg":
                mine = mine / n
            pieces = mine.split([m.size for m in members])
            for j, m, piece in zip(js, members, pieces, strict=True):
                result[j] = self._divided(m, piece, list(result[j].placements))

    def _divided(self, member: Member, flat: Tensor, placements: list[Placement]) -> DTensor:
        placements = list(placements)
        placements[self.axis] = member.handle.placements[self.axis]
        part = member.part(flat)
        return of_local(part, spec_over(self.mesh, placements, member.handle.shape, part), Stored)


def _placed(g: DTensor, placements: Sequence[Placement]) -> DTensor:
    """A gradient with other placements."""
    with beneath():
        return g.redistribute(placements=placements)


def _divided_axis(x: Any) -> int | None:
    """The one axis of the data over which a parameter is divided."""
    if not isinstance(x, Stored) or not x.numel():
        return None
    found = [i for i in data_dims(x.device_mesh) if not isinstance(x.placements[i], Replicate)]
    only = len(found) == 1 and type(x.placements[found[0]]) is Shard and x.device_mesh.size(found[0]) > 1
    taken = {p.dim for i, p in enumerate(x.placements) if isinstance(p, Shard) and i not in found}
    if not only or x.placements[found[0]].dim in taken:  # type: ignore[attr-defined]
        return None
    return found[0]


def _at_a_time(members: Sequence[DTensor]) -> Iterator[list[DTensor]]:
    """Members in the order of the tree, about so many bytes at a time."""
    part: list[DTensor] = []
    size = 0
    for x in members:
        part.append(x)
        size += x.numel() * x.element_size()
        if size >= _GROUP:
            yield part
            part, size = [], 0
    if part:
        yield part
