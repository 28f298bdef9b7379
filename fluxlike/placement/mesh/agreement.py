"""What the ranks of a mesh decide alike: numbers that they compare, questions that any may say yes to."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fluxlike._private import collectives
from fluxlike.placement.mesh.ranks import number

__all__ = ["Vote", "first_difference", "gathered_numbers", "is_first", "ranks_of"]


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
    return number() == ranks_of(mesh)[0]


def first_difference(
    texts: Sequence[str], mesh: DeviceMesh, /
) -> tuple[tuple[int, str], tuple[int, str]] | None:
    """Where the texts of a rank first differ from those of the first one; None where all are alike.

    One gathering of a number, and of the texts only where they differ.

    Returns:
        Two ranks by their numbers in the whole job, each with its text there, "" where it has no more.
    """
    joined = "\0".join(texts).encode()
    digest = int.from_bytes(blake2b(joined, digest_size=8).digest(), signed=True)
    first, *others = gathered_numbers([digest], mesh)
    differing = next((k for k, other in enumerate(others, 1) if other != first), None)
    if differing is None:
        return None
    longest = max(n for (n,) in gathered_numbers([len(joined)], mesh))
    sent = gathered_numbers([*joined, *[0] * (longest - len(joined))], mesh)
    a, b = (bytes(sent[k]).decode().split("\0") for k in (0, differing))
    k = next(k for k in range(len(a) + 1) if a[k : k + 1] != b[k : k + 1])
    numbers = ranks_of(mesh)
    return (numbers[0], "".join(a[k : k + 1])), (numbers[differing], "".join(b[k : k + 1]))


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
