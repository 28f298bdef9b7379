"""Sharded parameters in groups: gathered together when the first is used, and again for the backward pass.

Between the two passes nothing is kept but the shards (Zhao et al. 2023, arXiv 2304.11277): what autograd
saves of a gathered parameter is the way to gather it again. The gradients of a group are scattered
together, too.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private import collectives, functorch
from fluxlike._private.dtensors import Spec, beneath, local_of, of_local, spec_of, spec_over, storage_of
from fluxlike.placement.mesh.tensors import GATHER, Stored, data_dims

__all__ = ["gathering"]

_GROUP = 16 << 20  # bytes of whole parameters that travel at once


class _Member:
    """One parameter of a group.

    Attributes:
        handle: the parameter, divided.
        dim: the axis along which it is divided.
        shape: that of the whole, as far as this axis of the mesh divides it.
        chunk: the shape of the largest part.
        spec: that of the whole.
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


class _Group:
    """Parameters that are divided over one axis of a mesh and travel together."""

    def __init__(self, handles: Sequence[DTensor], axis: int) -> None:
        self.axis, self.mesh = axis, handles[0].device_mesh
        self.members = [_Member(h, axis) for h in handles]
        self.first = True
        self._waiting: dict[int, DTensor] = {}  # gathered, and not used yet
        self._used: dict[int, weakref.ref[DTensor]] = {}
        self._again: dict[int, Tensor] = {}  # gathered for the backward pass

    def gathered(self, k: int, registry: _Registry) -> DTensor:
        """A member, whole."""
        if k in self._waiting:
            return self._hand_out(k, self._waiting.pop(k))
        known = self._used.get(k)
        found = None if known is None else known()
        if found is not None:
            return found
        numbers = range(len(self.members)) if self.first else [k]
        self.first = False
        wholes = _Gather.apply(self, registry, numbers, *(self.members[i].handle for i in numbers))
        for i, x in zip(numbers, wholes, strict=True):
            self._waiting[i] = x
            registry.add(x, self, i)
        return self._hand_out(k, self._waiting.pop(k))

    def _hand_out(self, k: int, x: DTensor) -> DTensor:
        self._used[k] = weakref.ref(x)
        return x

    def forget(self) -> None:
        """Let go of what was gathered and not used."""
        self._waiting.clear()

    def locals(self, numbers: Sequence[int]) -> list[Tensor]:
        """The whole members of some numbers, by one collective."""
        members = [self.members[i] for i in numbers]
        flats = [m.flat(local_of(m.handle).detach()) for m in members]
        n = self.mesh.size(self.axis)
        together = torch.cat(flats) if len(flats) > 1 else flats[0]
        everything = collectives.all_gather(together, self.mesh, self.axis).reshape(n, -1)
        pieces = everything.split([m.size for m in members], 1)
        return [m.whole(piece) for m, piece in zip(members, pieces, strict=True)]

    def again(self, k: int) -> Tensor:
        """A member, whole, for the backward pass."""
        if k not in self._again:
            self._again = dict(enumerate(self.locals(range(len(self.members)))))
        return self._again[k]

    def scattered(self, numbers: Sequence[int], grads: Sequence[DTensor | None]) -> list[DTensor | None]:
        """The gradients of the parts from those of wholes."""
        self._again = {}
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
                g = grads_placed(g, wants)
            placement = wants[self.axis]
            if isinstance(placement, Partial) and placement.reduce_op in ("sum", "avg"):
                pending.append(j)
                result[j] = g
            else:
                whole = local_of(
                    g if not isinstance(placement, Partial) else grads_placed(g, member.placements)
                )
                flat = member.parts(whole, n)[self.mesh.get_local_rank(self.axis)]
                result[j] = self._divided(member, flat, wants)
        if pending:
            self._scatter(pending, numbers, result, n)
        return result

    def _scatter(self, pending: list[int], numbers: Sequence[int], result: list[Any], n: int) -> None:
        members = [self.members[numbers[j]] for j in pending]
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

    def _divided(self, member: _Member, flat: Tensor, placements: list[Placement]) -> DTensor:
        placements = list(placements)
        placements[self.axis] = member.handle.placements[self.axis]
        part = member.part(flat)
        return of_local(part, spec_over(self.mesh, placements, member.handle.shape, part), Stored)


def grads_placed(g: DTensor, placements: Sequence[Placement]) -> DTensor:
    """A gradient with other placements."""
    with beneath():
        return g.redistribute(placements=placements)


class _Gather(torch.autograd.Function):
    """Members of a group, whole; the gradient of each is that of its part, summed over the ranks."""

    @staticmethod
    def forward(ctx: Any, group: _Group, registry: Any, numbers: Sequence[int], *handles: DTensor) -> Any:
        ctx.group, ctx.numbers = group, numbers
        ctx.set_materialize_grads(False)
        wholes = group.locals(numbers)
        members = [group.members[i] for i in numbers]
        return tuple(
            of_local(x, spec_over(group.mesh, m.placements, m.handle.shape, x))
            for m, x in zip(members, wholes, strict=True)
        )

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and any(g is not None and g.requires_grad for g in grads):
            raise RuntimeError(
                "a gradient of parameters divided over a mesh is differentiated, and its forward pass was "
                "not, as in gradient(lambda c: norm(back(c)), c) with the back of a pullback taken outside; "
                "take the pullback inside the function that is differentiated"
            )
        return None, None, None, *ctx.group.scattered(ctx.numbers, grads)


class _Registry:
    """Which memory is that of a gathered parameter."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], _Group, int]] = {}

    def add(self, x: DTensor, group: _Group, k: int) -> None:
        local = local_of(x)
        self._known[storage_of(local)] = weakref.ref(local), group, k

    def find(self, local: Tensor) -> tuple[_Group, int] | None:
        """The group and the number of a member that a tensor is, or is a view of."""
        found = self._known.get(storage_of(local))
        return None if found is None or found[0]() is None else found[1:]


class _Again:
    """What autograd keeps in the place of a gathered parameter, or of a view of one."""

    def __init__(self, group: _Group, k: int, local: Tensor, spec: Spec | None, kind: type) -> None:
        self.group, self.k, self.spec, self.kind = group, k, spec, kind
        self.view = local.size(), local.stride(), local.storage_offset()

    def tensor(self) -> Tensor:
        local = self.group.again(self.k).as_strided(*self.view)
        return local if self.spec is None else of_local(local, self.spec, self.kind)


class _Gathering:
    """The groups of one gradient."""

    def __init__(self, handles: Sequence[Tensor]) -> None:
        self._registry = _Registry()
        self._groups: list[_Group] = []
        self._places: dict[int, tuple[_Group, int]] = {}
        by_kind: dict[Any, list[DTensor]] = {}
        for x in handles:
            axis = _axis(x)
            if axis is not None:
                assert isinstance(x, DTensor)
                by_kind.setdefault((x.device_mesh, axis, x.dtype), []).append(x)
        for (_, axis, _), members in by_kind.items():
            for part in _parts(members):
                group = _Group(part, axis)
                self._groups.append(group)
                self._places |= {id(x): (group, k) for k, x in enumerate(part)}

    def __bool__(self) -> bool:
        return bool(self._groups)

    def get(self, x: DTensor) -> DTensor | None:
        """A parameter whole, if it is in a group."""
        found = self._places.get(id(x))
        return None if found is None else found[0].gathered(found[1], self._registry)

    def pack(self, x: Tensor) -> Any:
        """What autograd keeps of a tensor."""
        if functorch.level_of(x):  # of a gradient inside, on plain tensors
            return x
        over = isinstance(x, DTensor)
        local = local_of(x) if isinstance(x, DTensor) else x
        found = self._registry.find(local)
        if found is None:
            return x
        return _Again(*found, local, spec_of(x) if over else None, type(x))  # type: ignore[arg-type]

    def unpack(self, kept: Any) -> Tensor:
        """The tensor for the backward pass."""
        return kept.tensor() if isinstance(kept, _Again) else kept

    def forget(self) -> None:
        """Let go of what was gathered and not used."""
        for group in self._groups:
            group.forget()


def _axis(x: Tensor) -> int | None:
    """The one axis of the data over which a parameter is divided."""
    if not isinstance(x, Stored):
        return None
    found = [i for i in data_dims(x.device_mesh) if not isinstance(x.placements[i], Replicate)]
    only = len(found) == 1 and type(x.placements[found[0]]) is Shard
    taken = {p.dim for i, p in enumerate(x.placements) if isinstance(p, Shard) and i not in found}
    if not only or x.placements[found[0]].dim in taken:  # type: ignore[attr-defined]
        return None
    return found[0]


def _parts(members: Sequence[DTensor]) -> Iterator[list[DTensor]]:
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


_open: ContextVar[_Gathering | None] = ContextVar("fluxlike_gathering", default=None)


@contextmanager
def gathering(handles: Sequence[Tensor], /) -> Iterator[None]:
    """Inside, the forward pass of a gradient gathers these parameters in groups."""
    opened = _Gathering(handles)
    if not opened:
        yield
        return
    token = _open.set(opened)
    try:
        with torch.autograd.graph.saved_tensors_hooks(opened.pack, opened.unpack):
            yield
    finally:
        _open.reset(token)
        opened.forget()


def _gathered(x: DTensor) -> DTensor | None:
    opened = _open.get()
    return None if opened is None else opened.get(x)


GATHER.append(_gathered)
