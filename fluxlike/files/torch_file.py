"""Files of torch.save, read as data alone, and nested dicts of tensors as names in dots."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fluxlike.files.reader import open_regular, shown

__all__ = ["load_torch", "named_tensors"]

_LONGEST_NAMES = 100_000_000  # characters, in all names together
_DEEPEST = 100


def load_torch(path: Path, /) -> Any:
    """What torch.save wrote, if it is nothing but data.

    Raises:
        ValueError: the file is damaged, or holds more.
    """
    with open_regular(path) as file:
        try:
            with io.BufferedReader(file) as buffered:
                _refuse_compression(buffered)
                # Read, not mapped: the mapping of a file that shrinks ends the process.
                return torch.load(buffered, map_location="cpu", weights_only=True, mmap=False)
        except Exception as error:  # whatever a hostile pickle sets off
            reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
            raise ValueError(
                f"{path} is damaged, no file of torch.save, or holds more than tensors and plain containers: "
                f"{reason}"
            ) from error


def _refuse_compression(file: io.BufferedReader[Any]) -> None:
    """torch.save never compresses, so what a file unpacks to is no larger than the file."""
    if file.read(4) == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
        size = file.seek(0, os.SEEK_END)
        if any(e.compress_type for e in entries) or sum(e.file_size for e in entries) > size:
            raise ValueError("its records are compressed, or larger than the file")
    file.seek(0)


def named_tensors(found: Any, key: str | None, title: str, /) -> dict[str, Tensor]:
    """The tensors of nested dicts by name, in dots; `key` chooses one of the dicts at the top.

    Raises:
        ValueError: there is no such part, or something that is no tensor.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"{title} holds a {type(found).__name__}, not tensors by name")
    parts = [name for name, value in found.items() if isinstance(name, str) and isinstance(value, Mapping)]
    if key is not None:
        if key not in parts:
            known = ", ".join(map(shown, parts[:10])) or "none"
            raise ValueError(f"{title} has no part {key!r}; its parts are: {known}")
        found = found[key]
    tensors: dict[str, Tensor] = {}
    queue: list[tuple[str, Any, int]] = [("", found, 0)]
    taken = 0
    while queue:
        name, value, depth = queue.pop()
        if isinstance(value, Mapping):
            taken += sum(len(name) + len(_key(k, title)) + 10 for k in value)
            if taken > _LONGEST_NAMES or depth > _DEEPEST:
                raise ValueError(f"{title} holds too many dicts, or a dict that holds itself")
            start = f"{name}." if depth else ""
            queue.extend((start + _key(k, title), v, depth + 1) for k, v in reversed([*value.items()]))
        elif not isinstance(value, Tensor):
            raise ValueError(
                f"{title} holds a {type(value).__name__} at {shown(name)}; {_advice(key, parts)}"
            )
        elif name in tensors:
            raise ValueError(f"{title} holds {shown(name)} twice")
        else:
            tensors[name] = value
    return tensors


def _key(key: Any, title: str) -> str:
    if type(key) not in (str, int):
        raise ValueError(f"{title} has a key of type {type(key).__name__}: {shown(key)}")
    return str(key)


def _advice(key: str | None, parts: list[str]) -> str:
    if key is None and parts:
        known = " or ".join(f"key={shown(part)}" for part in parts[:5])
        return f"say which part holds the model: {known}"
    return "read it with torch.load, and give the dict of its tensors"
