"""``python -m fluxlike info``: versions, devices, and what is installed."""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from fluxlike.aligned import aligned
from fluxlike.command.arguments import Subparsers, add_json
from fluxlike.command.printing import Line, show, show_json
from fluxlike.trees.show import plural, size_text

__all__ = ["EXTRAS", "add", "information", "package_version", "run"]

_REQUIRED = ("torch", "optree", "numpy")

#: The packages that each extra installs, as in pyproject.toml.
EXTRAS = {
    "training": ("torchmetrics", "rich", "tensorboard", "matplotlib", "pillow"),
    "hdf5": ("h5py",),
    "flax": ("msgpack",),
    "jax": ("jax",),
}

#: Used where they are there, and no part of an extra.
_USED_IF_THERE = ("torchvision", "pandas", "triton")


def add(commands: Subparsers[Any], common: argparse.ArgumentParser, /) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "info",
        parents=[common],
        help="versions, devices, what is installed",
        description=(
            "Say which fluxlike, torch and Python run here, on which devices, and which optional packages "
            "are there: what to put into a bug report. Optional packages are not imported."
        ),
        allow_abbrev=False,
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(given: argparse.Namespace, /) -> None:
    """Print what `information` finds."""
    found = information()
    if given.json:
        show_json(found)
    else:
        show(_lines(found))


def package_version() -> str:
    """The version of fluxlike."""
    # Its own files import from below, never from the package, which is there by now.
    return str(sys.modules["fluxlike"].__version__)


def information() -> dict[str, Any]:
    """What runs here, as plain values.

    Returns:
        A dict of versions (None where a package is not installed), devices with their memory in bytes, the
        device that `gpu` takes, and the C++ compiler, or None.
    """
    devices = list(_devices())
    return {
        "fluxlike": {"version": package_version(), "folder": str(Path(__file__).parents[1])},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in _REQUIRED},
        "extras": {extra: {name: _version(name) for name in names} for extra, names in EXTRAS.items()},
        "used_if_there": {name: _version(name) for name in _USED_IF_THERE},
        "devices": devices,
        "gpu": devices[1]["device"].partition(":")[0] if len(devices) > 1 else None,
        "compiler": _compiler(),
    }


def _version(name: str) -> str | None:
    if name == "torch":
        return torch.__version__  # which says what it was built for
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[dict[str, Any]]:
    """The CPU, then the accelerators in the order in which `gpu` looks for them."""
    yield {"device": "cpu", "name": platform.machine(), "threads": torch.get_num_threads(), "cores": _cores()}
    if torch.cuda.is_available():
        yield from (_card("cuda", i, torch.cuda) for i in range(torch.cuda.device_count()))
    if torch.backends.mps.is_available():
        yield {"device": "mps", "name": "Metal", "memory": torch.mps.recommended_max_memory()}
    if torch.xpu.is_available():
        yield from (_card("xpu", i, torch.xpu) for i in range(torch.xpu.device_count()))


def _card(kind: str, index: int, backend: Any) -> dict[str, Any]:
    about = backend.get_device_properties(index)
    return {"device": f"{kind}:{index}", "name": about.name, "memory": about.total_memory}


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compiler() -> str | None:
    """The C++ compiler that torch's compiler would call for the CPU."""
    named = os.environ.get("CXX")
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    return shutil.which(named or usual)


def _lines(found: dict[str, Any]) -> Iterator[Line]:
    yield Line(f"fluxlike {found['fluxlike']['version']}", "bold")
    yield from _table([[found["fluxlike"]["folder"]]])
    yield Line("Runs on", "bold")
    python = ["Python", found["python"]["version"], found["python"]["executable"]]
    yield from _table([python, ["platform", found["platform"], ""]])
    yield from _table([[name, version or "missing"] for name, version in found["packages"].items()])
    yield Line("Devices", "bold")
    yield from _table([_device_row(device) for device in found["devices"]])
    yield Line(f"  fl.gpu moves to {found['gpu'] or 'nothing: it leaves trees where they are'}")
    yield Line("Compiler for jit on the CPU", "bold")
    yield Line(f"  {found['compiler'] or _no_compiler()}", "" if found["compiler"] else "yellow")
    yield Line("Extras", "bold")
    for extra, packages in found["extras"].items():
        yield _extra_line(extra, packages)
    yield Line("Used where they are there", "bold")
    there = found["used_if_there"].items()
    yield from _table([[name, version or "not installed"] for name, version in there])


def _table(rows: list[list[str]]) -> Iterator[Line]:
    return (Line(f"  {text}") for text in aligned(rows))


def _device_row(device: dict[str, Any]) -> list[str]:
    if "threads" in device:
        held = f"{plural(device['threads'], 'thread')}, {plural(device['cores'], 'core')}"
    else:
        held = size_text(device["memory"])
    return [device["device"], device["name"], held]


def _no_compiler() -> str:
    named = os.environ.get("CXX")
    where = f"{named}, which CXX names, is not there" if named else "none found"
    return f"{where}: install one, such as g++ by apt install g++; until then jit does not compile"


def _extra_line(extra: str, packages: dict[str, str | None]) -> Line:
    there = [f"{name} {version}" for name, version in packages.items() if version]
    missing = [name for name, version in packages.items() if not version]
    text = f"  {extra.ljust(max(map(len, EXTRAS)))}  {', '.join(there)}"
    if not missing:
        return Line(text, "green")
    lack = f"missing {', '.join(missing)}: pip install 'fluxlike[{extra}]'"
    return Line(f"{text}; {lack}" if there else f"{text}{lack}", "yellow")
