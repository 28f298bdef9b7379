"""What a transform of plain tensors takes from tensors over a mesh, and how its results get back there.

`vmap`, and derivatives entry by entry, compute many members that know nothing of each other. So the ranks
share the members: a rank has its part of what is mapped, and all of what the members share. The gradient of
the latter is a sum over the ranks, each of which knows that of its own members alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike.placement.mesh.parts import piece_of
from fluxlike.placement.mesh.routes.random import apart
from fluxlike.placement.mesh.rowwise import Divided, enter, leave, whole
from fluxlike.placement.mesh.tensors import Batched, MeshTensor, Stored, data_dims, gathered, replicated

__all__ = ["Share", "laid_out_like", "of_entries", "of_members", "placed_like"]


class Share:
    """The members that this rank computes.

    Args:
        mesh: the ranks.
        rows: how an axis of the members lies over the mesh, where it is the first.
        kind: of the results.

    Attributes:
        count: the number of shares.
        number: which of them is that of this rank.
    """

    def __init__(self, mesh: DeviceMesh, rows: Sequence[Placement], kind: type[MeshTensor]) -> None:
        self._mesh, self._rows, self._kind = mesh, rows, kind
        self.number, self.count = piece_of(mesh, rows)

    def whole(self, x: DTensor, /) -> Tensor:
        """What all members share, plain."""
        if x.device_mesh != self._mesh:
            raise ValueError(
                f"tensors over two meshes meet, of shapes {tuple(self._mesh.shape)} and "
                f"{tuple(x.device_mesh.shape)}; put all over one: to_device(tree, mesh, plan)"
            )
        return enter(gathered(x) if isinstance(x, Stored) else x, whole(self._rows), self._rows)

    def part(self, x: Tensor, axis: int, /) -> Tensor:
        """This rank's members of a tensor that has them on an axis. All ranks have a plain one alike."""
        over = x if isinstance(x, DTensor) else replicated(x, self._mesh)
        return enter(over, self._at(axis), self._at(axis))

    def joined(self, y: Tensor, axis: int, /) -> DTensor:
        """The results of all members, of which this rank has those of its own on an axis."""
        return self._kept(leave(y, self._mesh, self._at(axis)))

    def shared(self, y: Tensor, /) -> DTensor:
        """A result that every rank has whole, and alike."""
        if y.requires_grad and self.count > 1:
            # Its cotangent comes whole to every rank, and gradients are summed over the ranks.
            y = y.view_as(y)
            y.register_hook(lambda cotangent: cotangent / self.count)
        return self._kept(leave(y, self._mesh, whole(self._rows)))

    def _kept(self, y: DTensor) -> DTensor:
        y.__class__ = self._kind
        return y

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Inside, torch's generators draw for the members of this rank; untouched where nothing is drawn."""
        device = torch.device(self._mesh.device_type)
        kind = torch if device.type == "cpu" else torch.get_device_module(device)
        before = torch.get_rng_state()
        with apart(self._mesh, self._rows, device):
            start = kind.get_rng_state()
            yield
            drawn = not torch.equal(start, kind.get_rng_state())
        if not drawn:
            torch.set_rng_state(before)

    def _at(self, axis: int) -> list[Placement]:
        return [Shard(axis) if isinstance(p, Shard) else Replicate() for p in self._rows]


def of_members(mesh: DeviceMesh, tensors: Sequence[Tensor], axes: Sequence[int], /) -> Share:
    """The share in members that stand on an axis of some tensors: as any of these is divided.

    Args:
        mesh: the ranks.
        tensors: the tensors that are mapped, plain ones too.
        axes: of the members, for each of them.
    """
    pairs = [(x, axis) for x, axis in zip(tensors, axes, strict=True) if isinstance(x, DTensor)]
    kind = Stored if any(isinstance(x, Stored) for x, _ in pairs) else Batched
    if not pairs:
        return Share(mesh, [Replicate()] * mesh.ndim, kind)
    return Share(mesh, Divided([x for x, _ in pairs], [axis for _, axis in pairs]).at(0), kind)


def of_entries(mesh: DeviceMesh, /) -> Share:
    """The share in the entries of an output, by its first axis, of the ranks that divide data."""
    dims = data_dims(mesh)
    return Share(mesh, [Shard(0) if i in dims else Replicate() for i in range(mesh.ndim)], Batched)


def laid_out_like(x: Tensor, like: Tensor, /) -> Tensor:
    """A plain tensor, which every rank has alike, laid out as `placed_like` would."""
    assert isinstance(like, DTensor)
    return placed_like(replicated(x, like.device_mesh), like)


def placed_like(x: Tensor, like: Tensor, /) -> Tensor:
    """A tensor over a mesh laid out as another, whole where a sum is pending, and of its kind."""
    assert isinstance(x, DTensor)
    assert isinstance(like, DTensor)
    placements = tuple(Replicate() if isinstance(p, Partial) else p for p in like.placements)
    new = x if x.placements == placements else x.redistribute(placements=placements)
    new.__class__ = type(like)
    return new
