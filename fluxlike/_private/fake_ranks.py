"""The one file that pretends to be a rank of many (private parts of torch.distributed and fake tensors)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import (
    FakeProcessGroup,
    ProcessGroup,
    _register_process_group,
    _unregister_process_group,
)
from torch._subclasses.fake_tensor import FakeTensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor._sharding_prop import ShardingPropagator

__all__ = ["fake_mesh", "is_fake", "propagating"]

_lock = threading.RLock()


class _FakeMesh(DeviceMesh):
    """A mesh whose other ranks are not there; this process is its rank 0."""

    def get_rank(self) -> int:
        return 0

    def get_local_rank(self, mesh_dim: int | str | None = None) -> int:
        return 0

    # A real mesh of the same shape is another one: torch remembers the meshes of what it computed.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)


@contextmanager
def fake_mesh(sizes: tuple[int, ...], names: tuple[str, ...] | None, device: str) -> Iterator[DeviceMesh]:
    """A mesh of any size whose collectives move nothing, for shapes alone; one at a time.

    Args:
        sizes: of its axes.
        names: of its axes.
        device: the type of its devices.
    """
    with _lock, _prepared():
        mesh = _made(sizes, names, device)
        new = {name: _group(name, n) for name, n in zip(mesh._dim_group_names, sizes, strict=True)}
        mesh._pg_registry.update(new)
        try:
            yield mesh
        finally:
            mesh._pg_registry.clear()
            for name in new:
                _unregister_process_group(name)


@cache
def _made(sizes: tuple[int, ...], names: tuple[str, ...] | None, device: str) -> Any:
    """Kept: what torch remembers of a mesh stays, so that there had better be few."""
    count = 1
    for n in sizes:
        count *= n
    ranks = torch.arange(count, device="cpu").reshape(sizes)
    mesh = _FakeMesh(device, ranks, mesh_dim_names=names, _init_backend=False, _rank=0)
    mesh._dim_group_names = [f"fluxlike.fake.{id(mesh)}.{i}" for i in range(len(sizes))]  # type: ignore[misc]
    return mesh


def _group(name: str, size: int) -> ProcessGroup:
    group = ProcessGroup(dist.HashStore(), 0, size)
    backend = FakeProcessGroup._create_internal(0, size)
    for device in ("cpu", "cuda"):
        group._register_backend(torch.device(device), ProcessGroup.BackendType.CUSTOM, backend)
    group._set_group_name(name)  # type: ignore[arg-type]
    _register_process_group(name, group)  # type: ignore[arg-type]
    return group


class _Propagation(threading.local):
    """A context that says whether it is open: around what DTensor does to know the shapes of its results."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


_propagation = _Propagation()


@contextmanager
def _prepared() -> Iterator[None]:
    """DTensor with its own operations on fake tensors marked."""
    lock = ShardingPropagator._fake_mode_lock
    # torch takes this lock around what it does on fake tensors of global shapes
    ShardingPropagator._fake_mode_lock = _propagation  # type: ignore[assignment]
    try:
        yield
    finally:
        ShardingPropagator._fake_mode_lock = lock


def propagating() -> bool:
    """Whether DTensor finds out the shapes of its results, on fake tensors of its own."""
    return _propagation.depth > 0


def is_fake(x: Tensor, /) -> bool:
    """Whether a tensor is a shape without memory, as `fluxlike._private.fake.stand_ins` makes them."""
    return type(x) is FakeTensor
