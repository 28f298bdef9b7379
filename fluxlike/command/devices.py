"""Where a command computes."""

from __future__ import annotations

import torch

__all__ = ["device_of"]

_ACCELERATORS = ("cuda", "mps", "xpu")


def device_of(name: str, where: str, /) -> torch.device:
    """A device by its name.

    Args:
        name: as torch has it, or ``"auto"`` for the accelerator, else the CPU.
        where: what it was written for, such as ``"[training] device"``.

    Raises:
        ValueError: it is no device, or is not there.

    Example:
        >>> device_of("cpu", "--device")
        device(type='cpu')
    """
    there = [kind for kind in _ACCELERATORS if _count(kind)]
    if name == "auto":
        return torch.device(there[0] if there else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f'{where} is {name!r}, no device of torch; write "auto", "cpu" or "cuda"') from None
    if device.type != "cpu" and not (device.index or 0) < _count(device.type):
        found = ", ".join(f"{_count(kind)} of {kind}" for kind in there) or "only the CPU"
        raise ValueError(f'{where} is "{name}", which is not here, where there is {found}; write "auto"')
    return device


def _count(kind: str) -> int:
    """How many devices of a kind there are."""
    backend = getattr(torch, kind, None)
    return backend.device_count() if backend is not None and backend.is_available() else 0
