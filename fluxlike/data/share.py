"""Which rows of a batch one of several ranks takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["WHOLE", "Share", "share_of"]


@dataclass(frozen=True)
class Share:
    """The part of every batch that a rank takes: its piece of so many equal pieces, in their order.

    Args:
        index: which piece. (default: 0)
        pieces: how many there are. (default: 1)
    """

    index: int = 0
    pieces: int = 1

    def of(self, n: int, /) -> slice:
        """This rank's of n rows; all of them, where they can't be shared equally."""
        size, rest = divmod(n, self.pieces)
        return slice(0, n) if rest else slice(self.index * size, (self.index + 1) * size)

    def narrowed(self, x: Tensor, /) -> Tensor:
        """This rank's rows of a tensor (N, …), as a view."""
        part = self.of(x.shape[0])
        return x[part] if part.stop - part.start < x.shape[0] else x


#: All rows: the share of one process.
WHOLE = Share()


def share_of(mesh: DeviceMesh, /) -> Share:
    """The share of this rank: as `shard_batch` divides a batch."""
    from fluxlike.placement.mesh.tensors import data_dims  # torch.distributed takes a while to import

    index, pieces = 0, 1
    for dim in data_dims(mesh):
        index = index * mesh.size(dim) + mesh.get_local_rank(dim)
        pieces *= mesh.size(dim)
    return Share(index, pieces)
