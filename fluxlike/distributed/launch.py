"""The start of a script on many devices: `init`, `mesh`, `rank` and `world_size`."""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fluxlike._private.process_groups import end_groups, leave_groups_to_parent
from fluxlike.distributed.watch import Watch

__all__ = ["init", "mesh", "rank", "world_size"]

_OF_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass
class _Started:
    """What this process has made."""

    device: torch.device
    store: Any
    watch: Watch | None = None
    process: int = field(default_factory=os.getpid)
    groups: int = 0
    meshes: dict[tuple[tuple[str, int], ...], DeviceMesh] = field(default_factory=dict)


_started: _Started | None = None


def init(device: torch.device | str | None = None, /, *, timeout: float | None = None) -> torch.device:
    """Join the other ranks, or be the only one: the first line of a script for one device and for many.

    Under torchrun (``torchrun --nproc-per-node 4 script.py``), or wherever its variables ``RANK``,
    ``WORLD_SIZE``, ``MASTER_ADDR`` and ``MASTER_PORT`` are set, it makes torch's default process group:
    NCCL between CUDA devices, one a process as ``LOCAL_RANK`` says, and gloo between CPUs. Without them it
    makes a group of this one process, so that the same script runs by ``python script.py``. A group that
    is there already is used. At the end of the process the group is destroyed.

    From then on **the end of one rank ends all**, on several machines too, and however they were started:

    - An error that nobody catches: the rank prints its traceback, and every other rank prints
      ``rank 2 failed: ValueError: …`` and ends with exit code 1 within seconds, wherever it stands, in a
      collective or not. Of several errors at once one is told; an error of the network itself counts as
      the trace of another rank's end, and waits a second for that. An error that is caught goes on as
      long as `abort` is not called with it.
    - A rank that is killed, or crashes outside Python: every other rank prints that it vanished, and when,
      and ends with exit code 1. A machine that is lost is noticed in half a minute.
    - A rank that runs to its end while others wait for it in a collective: where these get an error, at
      once from gloo and at the timeout from NCCL, they say that it has ended. So do they after
      ``sys.exit(1)``, which Python tells nobody; torchrun ends them then. The others may also run on
      without it, and rank 0 stays until all have ended.
    - Ctrl-C stays Ctrl-C: the ranks that get it end by ``KeyboardInterrupt``; the others have 30 seconds.

    Every rank has one connection to rank 0 and one thread that sleeps on it, so that a step costs nothing.
    A rank that ends for another one ends at once, as by a signal: ``finally`` is not run there.

    Args:
        device: ``"cuda"``, ``"cpu"``, or the very device such as ``"cuda:1"``. (default: CUDA where there
            is some, else the CPU)
        timeout: seconds that this call waits for the other ranks, and a collective for its partners.
            (default: torch's, 10 minutes with NCCL and 30 with gloo)

    Returns:
        The device of this rank. Called again, the same.

    Raises:
        ValueError: another device than in the first call; some of torchrun's variables without the
            others; more ranks than CUDA devices; a device that is neither CPU nor CUDA.
        RuntimeError: the others did not come within the timeout.

    Example:
        >>> import fluxlike as fl
        >>> from fluxlike.distributed.launch import init, mesh
        >>> device = init("cpu")
        >>> device
        device(type='cpu')
        >>> model = fl.to_device(fl.Dense(2, 3), mesh())
    """
    global _started
    if _started is not None and dist.is_initialized():
        if device is not None and _device(device) != _started.device:
            raise ValueError(
                f"init({str(device)!r}): this process is on {_started.device} since the first call; ask for "
                "the device there, or write init() here"
            )
        return _started.device
    asked = _device(device)
    if asked.type == "cuda":
        torch.cuda.set_device(asked)
    if _started is None:
        _started = _Started(asked, None)
        atexit.register(_destroy)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=leave_groups_to_parent)
    _started.device = asked
    _started.meshes.clear()
    if not dist.is_initialized():
        _make_group(_started, None if timeout is None else timedelta(seconds=timeout))
    if dist.get_world_size() > 1 and _started.watch is None:
        _started.watch = Watch(os.environ.get("MASTER_ADDR", "localhost"))
    return asked


def mesh(**sizes: int) -> DeviceMesh:
    """All ranks, laid out along named axes.

    Parameters and computation are divided along axes called ``"model"`` and ``"tensor"``; along every
    other axis, whatever its name, the data is. The ranks are laid out row by row: along the last axis
    they are neighbours, so the axis that communicates most stands last.

    Args:
        sizes: the ranks along each axis; one may be -1 for what is left. (default: one axis ``"data"``
            over all ranks)

    Returns:
        The ``DeviceMesh``, on the devices of `init`, which is called where it was not yet. For the same
        sizes the same mesh.

    Raises:
        ValueError: sizes whose product is not the number of ranks, or that are not whole numbers.

    Example:
        >>> from fluxlike.distributed.launch import mesh
        >>> mesh().mesh_dim_names
        ('data',)
        >>> mesh(data=-1, model=1).shape
        (1, 1)
        >>> mesh(data=2)
        Traceback (most recent call last):
            ...
        ValueError: mesh(data=2) is of 2 ranks, and there is 1: write mesh(data=-1), or start 2 ranks, \
by torchrun --nproc-per-node 2
    """
    device = init()
    assert _started is not None
    shape = tuple(_filled(sizes or {"data": -1}, dist.get_world_size()).items())
    if shape not in _started.meshes:
        with _loopback():
            _started.meshes[shape] = init_device_mesh(
                device.type, tuple(size for _, size in shape), mesh_dim_names=tuple(name for name, _ in shape)
            )
    return _started.meshes[shape]


def rank() -> int:
    """This process's number among the ranks, 0 where it is alone.

    Example:
        >>> from fluxlike.distributed.launch import rank
        >>> if rank() == 0:
        ...     print("told once, however many run")
        told once, however many run
    """
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many ranks there are, 1 without others.

    Example:
        >>> from fluxlike.distributed.launch import world_size
        >>> world_size()
        1
    """
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def _make_group(started: _Started, timeout: timedelta | None) -> None:
    waits: dict[str, Any] = {} if timeout is None else {"timeout": timeout}
    backend = "cpu:gloo,cuda:nccl" if started.device.type == "cuda" else "gloo"
    here, ranks = _of_environment()
    hook = sys.excepthook
    try:
        if started.store is None:
            started.store = _store(here, ranks, waits)
        started.groups += 1
        with _loopback() if ranks == 1 else contextlib.nullcontext():
            dist.init_process_group(
                backend,
                store=dist.PrefixStore(f"fluxlike/{started.groups}", started.store),
                rank=here,
                world_size=ranks,
                # alone, NCCL is only set up if it is used
                device_id=started.device if started.device.type == "cuda" and ranks > 1 else None,
                **waits,
            )
    except RuntimeError as error:
        if ranks > 1:
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            error.add_note(
                f"init: rank {here} of WORLD_SIZE={ranks} waited for the others at {address}. Every rank "
                "has to be started, has to call init, and has to reach that address"
            )
        raise
    if ranks == 1:
        sys.excepthook = hook  # torch's writes [rank0] before each line of an error


def _of_environment() -> tuple[int, int]:
    given = [name for name in _OF_TORCHRUN if name in os.environ]
    if not given:
        return 0, 1
    missing = [name for name in _OF_TORCHRUN if name not in os.environ]
    if missing:
        raise ValueError(
            f"init: {', '.join(given)} is set in the environment and {', '.join(missing)} is not; torchrun "
            "sets all of them; to run alone, unset them"
        )
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def _store(here: int, ranks: int, waits: dict[str, Any]) -> Any:
    if "RANK" not in os.environ:
        return dist.HashStore()
    store, _, _ = next(dist.rendezvous("env://", here, ranks, **waits))
    return store


def _device(asked: torch.device | str | None) -> torch.device:
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if asked is None else asked)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"init({str(device)!r}): ranks run on 'cpu' or 'cuda'; init() picks one of them")
    if device.type == "cpu":
        return torch.device("cpu")
    there = torch.cuda.device_count()
    index = device.index if device.index is not None else int(os.environ.get("LOCAL_RANK", rank()))
    if index >= there:
        raise ValueError(
            f"init: this process is the one with number {index} on its machine (LOCAL_RANK), which has "
            f"{there} CUDA devices: start {there} processes there, by torchrun --nproc-per-node {there}; "
            "or where each process sees only its own device, write init('cuda:0')"
        )
    return torch.device("cuda", index)


def _filled(sizes: dict[str, int], ranks: int) -> dict[str, int]:
    written = f"mesh({', '.join(f'{name}={size!r}' for name, size in sizes.items())})"
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or (size < 1 and size != -1):
            raise ValueError(f"{written}: {name} is how many ranks, 1 or more, or -1 for what is left")
    left = [name for name, size in sizes.items() if size == -1]
    if len(left) > 1:
        raise ValueError(f"{written}: {' and '.join(left)} can't both be what is left; one may be -1")
    known = 1
    for size in sizes.values():
        known *= size if size > 0 else 1
    there = f"there {'is' if ranks == 1 else 'are'} {ranks}"
    if left and ranks % known:
        raise ValueError(f"{written}: {there}, no multiple of the {known} named without {left[0]}")
    if not left and known != ranks:
        first = next(iter(sizes))
        rest = known // sizes[first]
        better = ", ".join(f"{name}={-1 if name == first else size}" for name, size in sizes.items())
        advice = f"write mesh({better}), or " if ranks % rest == 0 else ""
        raise ValueError(
            f"{written} is of {known} ranks, and {there}: {advice}start {known} ranks, by torchrun "
            f"--nproc-per-node {known}"
        )
    return {name: size if size > 0 else ranks // known for name, size in sizes.items()}


@contextlib.contextmanager
def _loopback() -> Iterator[None]:
    """A group of one process that listens on this machine only."""
    name = "GLOO_SOCKET_IFNAME"
    local = next((it for _, it in socket.if_nameindex() if it in ("lo", "lo0")), None)
    if local is None or name in os.environ or world_size() > 1:
        yield
        return
    os.environ[name] = local
    try:
        yield
    finally:
        os.environ.pop(name, None)


def _destroy() -> None:
    # a forked child holds its parent's connections
    if _started is not None and _started.process == os.getpid():
        end_groups()
