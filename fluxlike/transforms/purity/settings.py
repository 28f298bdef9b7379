"""The settings of torch that belong to no tensor: how to read each, and how to set it back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fluxlike.scope.autocast import device_types

__all__ = ["read", "restore"]


def _autocast(device: str) -> tuple[Callable[[], Any], Callable[[Any], object]]:
    return (
        lambda: torch.is_autocast_enabled(device),
        lambda value: torch.set_autocast_enabled(device, value),
    )


def _set_default_device(device: torch.device) -> None:
    # Without a default device, get_default_device says cpu.
    torch.set_default_device(None if device.type == "cpu" else device)


_SETTINGS: dict[str, tuple[Callable[[], Any], Callable[[Any], object]]] = {
    "grad mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (torch.get_default_device, _set_default_device),
    "autocast on the CPU": _autocast("cpu"),
    "autocast on CUDA": _autocast("cuda"),
    **{f"autocast on {kind}": _autocast(kind) for kind in device_types() if kind not in ("cpu", "cuda")},
    "use of deterministic algorithms": (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    "float32 matmul precision": (
        torch.get_float32_matmul_precision,
        torch.set_float32_matmul_precision,
    ),
    "number of threads": (torch.get_num_threads, torch.set_num_threads),
    "anomaly detection": (torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
}


def read() -> dict[str, Any]:
    """Every setting by name."""
    return {name: get() for name, (get, _) in _SETTINGS.items()}


def restore(before: dict[str, Any], /) -> None:
    """Set back what differs from an earlier reading."""
    for name, (get, put) in _SETTINGS.items():
        if get() != before[name]:
            put(before[name])
