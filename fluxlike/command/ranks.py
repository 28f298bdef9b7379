"""A command on many devices: the ranks that torchrun has started."""

from __future__ import annotations

import os
import sys
from typing import Any

import torch

from fluxlike.command.devices import device_of

__all__ = ["in_words", "is_first", "place_of", "tell"]


def place_of(name: str, where: str, /) -> Any:
    """Where a command computes: on a device, or under torchrun over the mesh of all ranks.

    Args:
        name: of the device, as `device_of` takes it. Of several CUDA devices each rank takes its own.
        where: what it was written for, such as ``"[training] device"``.

    Returns:
        A ``torch.device``, or a ``DeviceMesh``.

    Raises:
        ValueError: it is no device, or is not there, or ranks can't be on it.

    Example:
        >>> place_of("cpu", "--device")
        device(type='cpu')
    """
    device = device_of(name, where)
    if not _has_others():
        return device
    from fluxlike.distributed.launch import init, mesh

    init(device.type)
    return mesh()


def is_first() -> bool:
    """Whether this process is the one that prints and writes files."""
    return not _has_others() or os.environ.get("RANK") == "0"


def in_words(place: Any, /) -> str:
    """A place in words.

    Example:
        >>> in_words(torch.device("cpu"))
        'cpu'
    """
    return str(place) if isinstance(place, torch.device) else f"{place.size()} ranks of {place.device_type}"


def tell(error: BaseException, /) -> None:
    """Let the other ranks end with an error of this one; without others nothing happens."""
    watch = sys.modules.get("fluxlike.distributed.watch")  # imported where there are others
    if watch is not None:
        watch.abort(error)


def _has_others() -> bool:
    return os.environ.get("WORLD_SIZE", "1") != "1"
