"""A rank's connection to the hub on rank 0."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from fluxlike.distributed.hub import Hub, Message, keep_alive, line_of

__all__ = ["meet"]


def meet(rank: int, master: str) -> tuple[Hub | None, socket.socket | None, Iterator[Message]]:
    """Connect every rank to rank 0, by what they tell each other over the default process group.

    Args:
        rank: of this process.
        master: the address of rank 0's machine.

    Returns:
        The hub, on rank 0 only, this rank's connection to it, and the messages that will come in. Where
        some rank finds no way, rank 0 warns and nobody has any.
    """
    machines: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(machines, _machine())
    hub: Hub | None = None
    offer: list[Any] = [None]
    if rank == 0:
        with contextlib.suppress(OSError):
            hub = Hub(len(machines), everywhere=len(set(machines)) > 1)
            offer = [(hub.port, hub.token, socket.gethostname())]
    dist.broadcast_object_list(offer, src=0)
    line: socket.socket | None = None
    lines: Iterator[Message] = iter(())
    if offer[0] is not None:
        port, token, name = offer[0]
        hosts = ["127.0.0.1"] if machines[0] == machines[rank] else [master, name]
        where = f"process {os.getpid()} on {socket.gethostname()}"
        hello = line_of({"token": token, "rank": rank, "where": where})
        line, lines = _connected(hosts, port, hello)
    met: list[Any] = [None] * len(machines)
    dist.all_gather_object(met, line is not None)
    if all(met):
        return hub, line, lines
    if rank == 0:
        without = ", ".join(str(other) for other, there in enumerate(met) if not there)
        warnings.warn(
            f"init: no connection to rank 0 from ranks {without}, so an error on one rank will not end the "
            "others before their timeout: does a firewall keep the machines' free ports apart?",
            stacklevel=4,
        )
    if hub is not None:
        hub.close()
    if line is not None:
        line.close()
    return None, None, iter(())


def _connected(hosts: list[str], port: int, hello: bytes) -> tuple[socket.socket | None, Iterator[Message]]:
    for host in hosts:
        try:
            line = socket.create_connection((host, port), timeout=10.0)
        except OSError:
            continue
        lines = _messages(line)
        with contextlib.suppress(OSError):
            line.sendall(hello)
            if "welcome" in next(lines, {}):
                line.settimeout(None)
                keep_alive(line)
                return line, lines
        line.close()
    return None, iter(())


def _messages(line: socket.socket) -> Iterator[Message]:
    """The messages that come in, until the connection ends or something else is at its other end."""
    unread = b""
    while True:
        try:
            received = line.recv(65536)
        except OSError:
            return
        if not received:
            return
        *whole, unread = (unread + received).split(b"\n")
        for text in whole:
            try:
                yield json.loads(text)
            except ValueError:
                return


def _machine() -> str:
    """A name of this machine; a host's name alone may be that of every container."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.exists() else ''}"
