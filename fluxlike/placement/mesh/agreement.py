"""What the ranks of a mesh decide alike: numbers that they compare, questions that any may say yes to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fluxlike._private import collectives

__all__ = ["Vote", "gathered_numbers", "is_first", "ranks_of"]


def gathered_numbers(numbers: Sequence[int], mesh: DeviceMesh, /) -> list[list[int]]:
    """Whole numbers of every rank of a mesh, in the order of `ranks_of`; each rank gives as many."""
    rows = torch.tensor([list(numbers)], dtype=torch.int64, device=mesh.device_type)
    for dim in reversed(range(mesh.ndim)):
        if mesh.size(dim) > 1:
            rows = collectives.all_gather(rows, mesh, dim)
    found: list[list[int]] = rows.tolist()
    return found


def ranks_of(mesh: DeviceMesh, /) -> list[int]:
    """The ranks of a mesh, by their numbers in the whole job."""
    found: list[int] = mesh.mesh.flatten().tolist()
    return found


def is_first(mesh: DeviceMesh, /) -> bool:
    """Whether this is the first rank of a mesh, which writes what is written once."""
    return not any(mesh.get_coordinate() or ())


class Vote:
    """A question that all ranks put again and again, answered alike on all: whether any of them says yes.

    The answer is a sum over the ranks that travels while they go on with their work, along one axis of the
    mesh after the other; so it is that of a few questions before, and nobody waits for it. All ranks put the
    question equally often.

    Args:
        mesh: the ranks.

    Attributes:
        delay: how many questions later an answer comes.
    """

    def __init__(self, mesh: DeviceMesh) -> None:
        self._groups = [mesh.get_group(dim) for dim in range(mesh.ndim) if mesh.size(dim) > 1]
        self.delay = len(self._groups)
        self._device = torch.device(mesh.device_type)
        self._aside = torch.cuda.Stream() if self._device.type == "cuda" else None
        self._under_way: list[_Sum | None] = [None] * len(self._groups)

    def put(self, yes: bool, /) -> bool:
        """Say yes or no now, and learn whether anybody said yes a few questions ago."""
        answer = yes
        for i, group in enumerate(self._groups):
            before, self._under_way[i] = self._under_way[i], _Sum(answer, group, self._device, self._aside)
            answer = before is not None and before.positive()
        return answer

    def end(self) -> None:
        """Wait for what is under way."""
        for found in self._under_way:
            if found is not None:
                found.positive()


class _Sum:
    """A sum over the ranks of a group that is under way."""

    def __init__(self, yes: bool, group: Any, device: torch.device, aside: Any) -> None:
        self._aside = aside
        with torch.cuda.stream(aside):  # which does nothing for None
            self._x: Tensor = torch.full((1,), int(yes), dtype=torch.int32, device=device)
            self._work: Any = dist.all_reduce(self._x, group=group, async_op=True)

    def positive(self) -> bool:
        with torch.cuda.stream(self._aside):  # and so waits for these sums alone
            self._work.wait()
            return bool(self._x.item())
