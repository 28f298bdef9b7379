"""Files of torch.save, read as data alone."""

from __future__ import annotations

import io
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from fluxlike.files.nested_dicts import Named, named_tensors
from fluxlike.files.opening import START, TORCH, kind_of, open_regular
from fluxlike.files.printing import shown

__all__ = ["read_torch"]


def read_torch(path: Path, part: str | None, /) -> tuple[Named, tuple[int, ...]]:
    """The tensors by name of what torch.save wrote, if it is nothing but data, and the file's identity.

    Raises:
        ValueError: the file is damaged, holds more, or its tensors are far larger than itself.
    """
    with open_regular(path) as file:
        status = os.fstat(file.fileno())
        with io.BufferedReader(file) as buffered:
            found = _loaded(buffered, path)
    named = named_tensors(found, part, str(path))
    _require_bounded(named, status.st_size, path)
    return named, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


def _loaded(file: io.BufferedReader[Any], path: Path) -> Any:
    try:
        _require_known(file)
        # Read, not mapped: the mapping of a file that shrinks ends the process.
        return torch.load(file, map_location="cpu", weights_only=True, mmap=False)
    except Exception as error:  # whatever a hostile pickle sets off
        kind = re.search(r"GLOBAL (\S+) was not an allowed global", str(error))
        if kind:
            raise ValueError(
                f"{path} holds more than tensors and plain containers: a {shown(kind[1])[1:-1]}; where that "
                "is a whole module, and you trust the file, which may run any code, give "
                "torch.load(path, weights_only=False).state_dict() instead of the path"
            ) from error
        raise ValueError(
            f"{path} is damaged, no file of torch.save, or holds more than tensors and plain containers: "
            f"{_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    """The first line of an error, without the colours of a terminal."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip()
    line = "".join(c if c.isprintable() else " " for c in text.splitlines()[0][:300]) if text else ""
    return line if isinstance(error, ValueError) and line else f"{type(error).__name__} {line}".strip()


def _require_known(file: io.BufferedReader[Any]) -> None:
    """Raise unless torch.save may have written a file.

    It never compresses, so what a file unpacks to is no larger than the file.
    """
    start = file.read(START)
    if kind_of(start) != TORCH:
        raise ValueError("it does not start as torch.save starts a file")
    if start[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        names = {entry.filename.partition("/")[2] for entry in entries}
        if "constants.pkl" in names:
            raise ValueError(
                "it is an archive of TorchScript; give torch.jit.load(path).state_dict() instead of the "
                "path, if you trust it"
            )
        if "data.pkl" not in names:
            raise ValueError("it is an archive that torch.save did not write")
        size = file.seek(0, os.SEEK_END)
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("its records are compressed, or larger than the file")
    file.seek(0)


def _require_bounded(named: Named, size: int, path: Path) -> None:
    """Raise where tensors that repeat an entry, or one another, would unfold to far more than the file."""
    claimed = sum(x.numel() * x.itemsize for x in named.tensors.values() if x.layout is torch.strided)
    if claimed > 2**26 + 64 * size:
        raise ValueError(
            f"{path} has {size} bytes, and its tensors would take {claimed}: they repeat one memory; save "
            "clones of them"
        )
