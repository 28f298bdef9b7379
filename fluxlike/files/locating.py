"""A checkpoint is found at a path: a file, the shards of an index, a folder; or it is a dict."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fluxlike.files.nested_dicts import named_tensors
from fluxlike.files.opening import SAFETENSORS, START, TORCH, kind_of, open_regular
from fluxlike.files.parts import part_of
from fluxlike.files.printing import shown
from fluxlike.files.reader import TensorFile
from fluxlike.files.sources import InMemory, Safetensors, Source, TorchShards
from fluxlike.files.strict_json import read_json
from fluxlike.files.tensors import FORMAT, described
from fluxlike.files.torch_file import read_torch

__all__ = ["source_of"]

_KINDS = {
    ".safetensors": SAFETENSORS,
    ".pt": TORCH,
    ".pth": TORCH,
    ".bin": TORCH,
    ".ckpt": TORCH,
}
_IN_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LARGEST_INDEX = 100_000_000  # bytes


def source_of(source: Any, part: str | None, /) -> Source:
    """The checkpoint at a path, or in a dict.

    Raises:
        ValueError: it can't be read.
        TypeError: it is neither a path nor a dict.
    """
    if isinstance(source, Mapping):
        return InMemory("the checkpoint", named_tensors(source, part, "the checkpoint"), lent=True)
    if not isinstance(source, (str, os.PathLike)):
        hint = "; give module.state_dict()" if isinstance(source, torch.nn.Module) else ""
        raise TypeError(f"a checkpoint is a path or a dict of tensors, found a {type(source).__name__}{hint}")
    path = Path(source)
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".json"):
        return _indexed(path, part)
    if _kind(path) == SAFETENSORS:
        return _single(path, part)
    return InMemory(str(path), read_torch(path, part)[0], lent=False)


def _in_folder(folder: Path) -> Path:
    found = next((folder / name for name in _IN_FOLDER if (folder / name).exists()), None)
    if found is None:
        raise ValueError(f"the folder {folder} holds none of {', '.join(_IN_FOLDER)}; give the file itself")
    return found


def _single(path: Path, part: str | None) -> Safetensors:
    """A file of safetensors; of one that `save` wrote, perhaps one part."""
    source = Safetensors(path, [path])
    if part is not None:
        with TensorFile(path) as file:
            if FORMAT not in file.metadata:
                _refuse_part(part, path)
            place, about = part_of(described(path, file), part, str(path))
        source.narrow(f"{shown(place)} of {path}", about.names_of_tensors())
    return source


def _kind(path: Path) -> str:
    """What a file is by its first bytes; its name must not say otherwise, but where `save` was given it."""
    with open_regular(path) as file:
        found = kind_of(file.read(START))
    named = _KINDS.get(path.suffix)
    if found in _KINDS.values() and named in (None, found):
        return str(found)
    if found == SAFETENSORS and _is_ours(path):
        return SAFETENSORS
    if found is not None:
        what = f"is {named} by its name, and {found}" if named else f"is {found}"
        hint = "rename it" if found in _KINDS.values() else "load_keras and load_flux read such files"
        raise ValueError(f"{path} {what} by its first bytes; {hint}")
    if named is None:
        raise ValueError(
            f"{path} is no checkpoint by its first bytes: known are safetensors, files of torch.save, the "
            ".index.json of shards, and a folder that holds one"
        )
    return named


def _is_ours(path: Path) -> bool:
    """Whether `save` wrote a file of safetensors."""
    try:
        with TensorFile(path) as file:
            return FORMAT in file.metadata
    except ValueError:
        return False


def _refuse_part(part: str | None, path: Path) -> None:
    if part is not None:
        raise ValueError(
            f"{path} has no parts to choose from, so no part={part!r}; write rename={{{part!r}: ''}}"
        )


def _indexed(path: Path, part: str | None) -> Source:
    """The shards that an index names, each in the folder of the index."""
    _refuse_part(part, path)
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > _LARGEST_INDEX:
            raise ValueError(f"the index {path} is larger than {_LARGEST_INDEX} bytes")
        raw = file.read(_LARGEST_INDEX)
    try:
        index = read_json(raw)
        if not isinstance(index.get("weight_map"), dict):
            raise ValueError("it has no weight_map")
        shard_of = {name: _shard(name, shard) for name, shard in index["weight_map"].items()}
        shards = dict.fromkeys(shard_of.values())
        missing = [shard for shard in shards if not (path.parent / shard).exists()]
        if missing:
            raise ValueError(f"of {len(shards)} shards {len(missing)} are missing: {', '.join(missing[:10])}")
        source = _sharded(path, [path.parent / shard for shard in shards])
        names = (*source.forms, *source.others)
        _require_agreement(shard_of, {name: source.file_of(name) for name in names})
    except ValueError as error:
        raise ValueError(f"the index {path} does not agree with its shards: {error}") from error
    return source


def _sharded(path: Path, files: list[Path]) -> Safetensors | TorchShards:
    kinds = {file: _kind(file) for file in files}
    if len(set(kinds.values())) > 1:
        raise ValueError(f"of its shards some are {SAFETENSORS}, some {TORCH}")
    return Safetensors(path, files) if set(kinds.values()) == {SAFETENSORS} else TorchShards(path, files)


def _shard(name: str, shard: Any) -> str:
    """The file name of a shard, which must not lead out of the folder."""
    plain = isinstance(shard, str) and 0 < len(shard) < 256 and shard.isprintable()
    if not plain or shard in (".", "..") or any(c in shard for c in "/\\:\0"):
        raise ValueError(
            f"the shard of {shown(name)} is {shown(shard)}, no name of a file in the same folder"
        )
    return shard


def _require_agreement(shard_of: dict[str, str], held: dict[str, str]) -> None:
    for name, shard in shard_of.items():
        if held.get(name) != shard:
            other = f"it is in {held[name]}" if name in held else "it is in none"
            raise ValueError(f"{shown(name)} is not in {shard}: {other}")
    for name, shard in held.items():
        if name not in shard_of:
            raise ValueError(f"{shown(name)} of {shard} is not in the index")
