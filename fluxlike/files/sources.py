"""Where the tensors of a checkpoint are: in safetensors files, in files of torch, in shards, in a dict."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fluxlike.files.reader import Stored, TensorFile, open_regular, read_json, shown
from fluxlike.files.torch_file import load_torch, named_tensors

__all__ = ["Form", "Source", "source_of"]

_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_IN_FOLDER = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_LARGEST_INDEX = 100_000_000  # bytes


class Form(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.layout = torch.strided


class Source(Protocol):
    """A checkpoint whose tensors are read when they are asked for.

    Attributes:
        title: what to call it in messages.
        forms: what is known of every tensor, by name.
    """

    title: str
    forms: dict[str, Form]

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of some names, in any order, each in memory of its own."""


def source_of(source: Any, key: str | None, /) -> Source:
    """The checkpoint at a path, or in a dict.

    Raises:
        ValueError: it can't be read.
        TypeError: it is neither a path nor a dict.
    """
    if isinstance(source, Mapping):
        return _InMemory("the checkpoint", named_tensors(source, key, "the checkpoint"), lent=True)
    if not isinstance(source, (str, os.PathLike)):
        hint = "; give module.state_dict()" if isinstance(source, torch.nn.Module) else ""
        raise TypeError(f"a checkpoint is a path or a dict of tensors, found a {type(source).__name__}{hint}")
    path = Path(source)
    if path.is_dir():
        path = _in_folder(path)
    if path.name.endswith(".json"):
        return _indexed(path, key)
    if path.suffix == ".safetensors":
        _refuse_key(key, path)
        return _Safetensors(path, [path])
    if path.suffix in _TORCH:
        return _InMemory(str(path), named_tensors(load_torch(path), key, str(path)), lent=False)
    raise ValueError(
        f"{path} is no checkpoint by its name: known are .safetensors, {', '.join(_TORCH)}, the .index.json "
        "of shards, and a folder that holds one"
    )


def _in_folder(folder: Path) -> Path:
    found = next((folder / name for name in _IN_FOLDER if (folder / name).exists()), None)
    if found is None:
        raise ValueError(f"the folder {folder} holds none of {', '.join(_IN_FOLDER)}; give the file itself")
    return found


def _refuse_key(key: str | None, path: Path) -> None:
    if key is not None:
        raise ValueError(
            f"{path} has no parts to choose from, so no key={key!r}; write rename={{{key!r}: ''}}"
        )


class _Safetensors:
    """The tensors of safetensors files, of which one at a time is open."""

    def __init__(self, title: Path, files: list[Path]) -> None:
        self.title = str(title)
        self.forms: dict[str, Form] = {}
        self._where: dict[str, tuple[Path, Stored]] = {}
        self._identities: dict[Path, tuple[int, ...]] = {}
        for path in files:
            with TensorFile(path) as file:
                self._identities[path] = file.identity
                for name, stored in file.tensors.items():
                    if name in self._where:
                        raise ValueError(f"{shown(name)} is in {self._where[name][0]} and in {path}")
                    self.forms[name] = Form(stored.shape, stored.dtype)
                    self._where[name] = path, stored

    def file_of(self, name: str) -> str:
        """The name of the file that holds a tensor."""
        return self._where[name][0].name

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        by_file: dict[Path, list[str]] = {}
        for name in names:
            by_file.setdefault(self._where[name][0], []).append(name)
        for path, held in by_file.items():
            with TensorFile(path) as file:
                if file.identity != self._identities[path]:
                    raise ValueError(f"{path} was changed while it was read")
                for name in sorted(held, key=lambda n: self._where[n][1].start):
                    yield name, file.read(name)


class _InMemory:
    """Tensors that are there already: lent, so to be copied, or read from a file for us."""

    def __init__(self, title: str, tensors: dict[str, Tensor], *, lent: bool) -> None:
        self.title, self._tensors, self._lent = title, tensors, lent
        self.forms = {name: Form(tuple(x.shape), x.dtype, x.layout) for name, x in tensors.items()}

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        used: set[int] = set()
        for name in names:
            x = self._tensors[name].detach()
            if x.is_meta:
                raise ValueError(f"{shown(name)} of {self.title} is on the meta device, which holds no data")
            if x.layout is torch.strided:
                memory = x.untyped_storage()
                whole = x.is_contiguous() and memory.nbytes() == x.numel() * x.element_size()
                if self._lent or not whole or memory.data_ptr() in used:
                    x = x.clone(memory_format=torch.contiguous_format)
                used.add(memory.data_ptr())
            elif self._lent:
                x = x.clone()
            yield name, x


def _indexed(path: Path, key: str | None) -> Source:
    """The shards that an index names, each in the folder of the index."""
    _refuse_key(key, path)
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
        files = [path.parent / shard for shard in shards]
        if any(file.suffix != ".safetensors" for file in files):
            source, held = _torch_shards(path, files)
        else:
            safe = _Safetensors(path, files)
            source, held = safe, {name: safe.file_of(name) for name in safe.forms}
        _require_agreement(shard_of, held)
    except ValueError as error:
        raise ValueError(f"the index {path} does not agree with its shards: {error}") from error
    return source


def _torch_shards(path: Path, files: list[Path]) -> tuple[Source, dict[str, str]]:
    tensors: dict[str, Tensor] = {}
    held: dict[str, str] = {}
    for file in files:
        if file.suffix not in _TORCH:
            raise ValueError(f"{file} is no shard by its name")
        for name, x in named_tensors(load_torch(file), None, str(file)).items():
            if name in held:
                raise ValueError(f"{shown(name)} is in {held[name]} and in {file.name}")
            tensors[name], held[name] = x, file.name
    return _InMemory(str(path), tensors, lent=False), held


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
