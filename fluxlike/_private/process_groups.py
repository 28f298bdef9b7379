"""The one file that ends torch's process groups, workers and all (private parts of torch)."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

__all__ = ["end_groups", "leave_groups_to_parent", "settle"]

#: Works of groups that a program still holds at its end, so that no worker is the last to hold one.
_kept: list[Any] = []


def end_groups() -> None:
    """Destroy all process groups of this process, which is about to end.

    Two things that ``destroy_process_group`` leaves to chance are done here:

    - A worker of gloo asks for the GIL to let go of the tensors of a collective that is over. If Python is
      taken down at that moment, the process ends by ``terminate called without an active exception``
      (issue 190489 of pytorch). So the workers are waited for.
    - A group closes its connections when its last reference goes, and every mesh has one. As long as they are
      open, those who wait in a collective for this rank wait on. So the meshes let go of it.
    """
    registries = _groups_of_meshes()
    last = _settled(_all(registries))
    for groups in registries:
        groups.clear()
    if dist.is_initialized():
        dist.destroy_process_group()
    # of the other groups the workers are joined by now
    _kept.extend(work for group, work in last if group() is not None)


def leave_groups_to_parent() -> None:
    """Let this forked child never be the one to end a group.

    It has no workers, and perhaps a copy of a lock that one of them had: the end would wait for that.
    """
    for group in _all(_groups_of_meshes()):
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(group))


def settle(workers: Any, /, seconds: float = 5.0) -> Any:
    """Wait until no worker of a gloo group holds a tensor, whoever holds the group.

    A worker lets go of a collective before it takes the next one. So they are given empty ones, which gloo
    ends without asking other ranks, until each was seen to let go of one.

    Args:
        workers: the ``ProcessGroupGloo``.
        seconds: for all of it. (default: 5)

    Returns:
        A last empty collective, to be held as long as the workers live; None where one of them was not seen,
        since it waits for another rank.
    """
    count, until = workers.options._threads, time.monotonic() + seconds
    seen: set[int] = set()
    while len(seen - {threading.get_ident()}) < count:
        given = [torch.empty(0) for _ in range(count)]
        left = [weakref.ref(x, lambda _: seen.add(threading.get_ident())) for x in given]
        while given:
            workers.allreduce([given.pop()])
        while any(x() is not None for x in left):
            if time.monotonic() >= until:
                return None
            time.sleep(1e-4)
    # the one seen last may still be at it, under the lock that this takes
    return workers.allreduce([torch.empty(0)])


def _groups_of_meshes() -> list[dict[str, Any]]:
    meshes = [x for x in gc.get_objects() if type(x) is DeviceMesh]
    return [vars(mesh).get("_pg_registry", {}) for mesh in meshes]


def _all(registries: list[dict[str, Any]]) -> set[Any]:
    return {*distributed_c10d._world.pg_map, *(it for groups in registries for it in groups.values())}


def _settled(groups: Iterable[Any]) -> list[tuple[weakref.ref[Any], Any]]:
    """The groups with workers, and what `settle` gives for each."""
    return [(weakref.ref(group), settle(workers)) for group in groups for workers in _gloo(group)]


def _gloo(group: Any) -> list[Any]:
    if not dist.is_gloo_available():
        return []
    backends = [group._get_backend(device) for device in group._device_types]
    # under TORCH_DISTRIBUTED_DEBUG=DETAIL there is another one around it
    inner = [getattr(backend, "wrapped_pg", backend) for backend in backends]
    # for several devices it is the same
    return [backend for backend in dict.fromkeys(inner) if isinstance(backend, dist.ProcessGroupGloo)]
