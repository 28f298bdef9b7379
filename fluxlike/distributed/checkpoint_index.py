"""What a sharded checkpoint holds and where: ``checkpoint.json``, which makes files of ranks a checkpoint."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from fluxlike.files import description
from fluxlike.files.description import Description
from fluxlike.files.opening import open_regular
from fluxlike.files.printing import shown
from fluxlike.files.reader import BLOCK, DTYPES
from fluxlike.files.sealed import sealed, unsealed

__all__ = ["FILE", "INDEX", "Chunk", "Index", "Saved", "file_name", "read_index", "written_index"]

#: The file that names all others; a folder without it has no checkpoint.
INDEX = "checkpoint.json"

#: What the files of ranks are called.
FILE = re.compile(r"(?P<token>[0-9a-f]{16})-\d{5,}\.safetensors", re.ASCII)

_VERSION = 1
_LARGEST = 1_000_000_000  # bytes of an index: some ten thousand ranks
_TOKEN = re.compile(r"[0-9a-f]{16}", re.ASCII)
_NUMBERS = r"(?:\d{1,19}(?:,\d{1,19})*)?"
_CHUNK = re.compile(rf"(\d{{1,9}}):({_NUMBERS}):({_NUMBERS}):([0-9a-f]{{8}}(?:\.[0-9a-f]{{8}})*)", re.ASCII)
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Chunk:
    """A box of a tensor, stored under the tensor's name in one file.

    Attributes:
        offsets: where it begins in the tensor.
        shape: its shape; nowhere 0.
        file: the number of its file.
        checksums: the CRC-32 of each `BLOCK` bytes of it; None where there is only that of the tensor.
    """

    offsets: tuple[int, ...]
    shape: tuple[int, ...]
    file: int
    checksums: tuple[int, ...] | None


@dataclass(frozen=True)
class Saved:
    """A tensor, of the dtype and shape as stored, and the chunks that fill it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Index:
    """A checkpoint: the token of its files' names, what it says of its tree, and its tensors by name."""

    token: str
    about: Description
    tensors: Mapping[str, Saved]


def file_name(token: str, number: int, /) -> str:
    """What the file of a rank is called; the token tells the files of two saves apart."""
    return f"{token}-{number:05d}.safetensors"


def written_index(token: str, about: Description, tensors: Mapping[str, Saved], /) -> str:
    """What `read_index` reads.

    Raises:
        ValueError: the chunks of a tensor do not fill it.
    """
    for name, saved in tensors.items():
        _require_filled(name, saved)
    listed = {
        name: [_NAMES[x.dtype], list(x.shape), " ".join(map(_text, x.chunks))] for name, x in tensors.items()
    }
    return sealed({"version": _VERSION, "token": token, "tree": about.text(), "tensors": listed})


def read_index(folder: Path, /) -> Index:
    """The checkpoint in a folder, of which no tensor is read yet.

    Raises:
        FileNotFoundError: there is none.
        ValueError: its index is damaged.
    """
    path = folder / INDEX
    if not path.exists():
        left = folder.is_dir() and any(FILE.fullmatch(entry.name) for entry in folder.iterdir())
        why = "a save into it did not come to its end, and left no older one" if left else f"no {INDEX}"
        raise FileNotFoundError(f"there is no checkpoint of fluxlike.distributed.save in {folder}: {why}")
    with open_regular(path) as file:
        raw = file.read(_LARGEST + 1)
    try:
        if len(raw) > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST} bytes")
        about = unsealed(raw.decode(), _VERSION)
        return _parsed(about)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged, or no index of a checkpoint: {error}") from error


def _parsed(about: dict[str, Any]) -> Index:
    token, text, listed = about["token"], about["tree"], about["tensors"]
    if not (isinstance(token, str) and _TOKEN.fullmatch(token) and isinstance(text, str)):
        raise ValueError(f"its token is {shown(token)}")
    if not isinstance(listed, dict):
        raise ValueError("its tensors are no object")
    tree = description.parse(text)
    tensors = {name: _saved(name, entry) for name, entry in listed.items()}
    stray = set(tree.stored()) ^ tensors.keys()
    if stray:
        raise ValueError(f"{shown(min(stray))} is not both stored and described")
    return Index(token, tree, tensors)


def _saved(name: str, entry: Any) -> Saved:
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str):
        raise ValueError(f"{shown(name)} is listed as {shown(entry)}")
    dtype, shape, chunks = DTYPES.get(entry[0]), entry[1], entry[2]
    counts = isinstance(shape, list) and len(shape) <= 64 and all(type(n) is int and n >= 0 for n in shape)
    if dtype is None or not counts or not isinstance(chunks, str):
        raise ValueError(f"{shown(name)} is listed as {shown(entry)}")
    if prod(max(n, 1) for n in shape) * dtype.itemsize >= 2**63:
        raise ValueError(f"{shown(name)} has the shape {shown(shape)}")
    saved = Saved(dtype, tuple(shape), tuple(_chunk(name, text) for text in chunks.split()))
    _require_filled(name, saved)
    return saved


def _chunk(name: str, text: str) -> Chunk:
    match = _CHUNK.fullmatch(text)
    if match is None:
        raise ValueError(f"{shown(name)} has a part {shown(text)}")
    file, offsets, shape, checksums = match.groups()
    sums = tuple(int(part, 16) for part in checksums.split("."))
    return Chunk(_numbers(offsets), _numbers(shape), int(file), sums)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(","))) if text else ()


def _text(chunk: Chunk) -> str:
    offsets, shape = (",".join(map(str, numbers)) for numbers in (chunk.offsets, chunk.shape))
    return f"{chunk.file}:{offsets}:{shape}:{'.'.join(f'{n:08x}' for n in chunk.checksums or ())}"


def _require_filled(name: str, saved: Saved) -> None:
    """Raise unless the chunks fill the tensor, without holes and without overlap, and have their checksums.

    Placements over a mesh cut every axis for itself, so the chunks are the cells of a grid.
    """
    if 0 in saved.shape:
        if saved.chunks:
            raise ValueError(f"{shown(name)} is empty and has parts")
        return
    cuts: list[dict[int, int]] = [{} for _ in saved.shape]
    for chunk in saved.chunks:
        if len(chunk.offsets) != len(saved.shape) or len(chunk.shape) != len(saved.shape):
            raise ValueError(f"{shown(name)} has a part of another number of axes")
        for cut, start, size in zip(cuts, chunk.offsets, chunk.shape, strict=True):
            if cut.setdefault(start, size) != size:
                raise ValueError(f"the parts of {shown(name)} overlap")
        blocks = -(-prod(chunk.shape) * saved.dtype.itemsize // BLOCK)
        if chunk.checksums is None or len(chunk.checksums) != blocks:
            raise ValueError(f"a part of {shown(name)} has not {blocks} checksums")
    whole = all(_tiles(cut, n) for cut, n in zip(cuts, saved.shape, strict=True))
    different = len({chunk.offsets for chunk in saved.chunks})
    if not whole or different != len(saved.chunks) or different != prod(map(len, cuts)):
        raise ValueError(f"the parts of {shown(name)} do not fill its shape {list(saved.shape)}")


def _tiles(cut: Mapping[int, int], size: int) -> bool:
    end = 0
    for start, length in sorted(cut.items()):
        if start != end or length < 1:
            return False
        end += length
    return end == size
