"""What a run was measured on."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import fluxlike as fl

PEERS = (
    "numpy", "optree", "torchvision", "timm", "transformers", "torchopt", "jax", "jaxlib", "equinox", "optax",
)  # fmt: skip


def machine() -> dict[str, Any]:
    """The machine, the settings, and the versions that a run was measured with.

    Returns:
        `processor`, `cores` that this process may use, `threads` of torch's at its start, `load` of the
        machine in the minute before, `date` (UTC), `system`, and `versions`.
    """
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": platform.system(),
        "versions": {
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "fluxlike": fl.__version__,
            **{name: found for name in PEERS if (found := _version(name))},
        },
    }


def hardware(found: dict[str, Any]) -> str:
    """The processor, and the versions that count most."""
    versions = ", ".join(f"{name} {found['versions'][name]}" for name in ("torch", "Python"))
    return f"{found['processor']}, {found['cores']} cores, {versions}"


def sentence(found: dict[str, Any]) -> str:
    """A machine in one line."""
    return f"{hardware(found)}, {found['threads']} threads, load {found['load']}, {found['date']}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
