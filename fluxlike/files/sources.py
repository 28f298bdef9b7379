"""Where the tensors of a checkpoint are: in safetensors files, in files of torch, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from fluxlike.files.nested_dicts import Named
from fluxlike.files.printing import shown
from fluxlike.files.reader import Stored, TensorFile
from fluxlike.files.torch_file import read_torch

__all__ = ["Form", "InMemory", "Safetensors", "Source", "TorchShards", "refuse_others"]


class Form(NamedTuple):
    """What is known of a tensor before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    layout: torch.layout = torch.strided


class Source(Protocol):
    """A checkpoint whose tensors are read when they are asked for, once.

    Attributes:
        title: what to call it in messages.
        forms: what is known of every tensor, by name.
        others: the kinds of what is no tensor, by name.
        advice: what to write instead where they are in the way, if anything.
    """

    title: str
    forms: dict[str, Form]
    others: dict[str, str]
    advice: str

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """The tensors of some names, in any order, each in memory of its own."""


def refuse_others(source: Source, kept: Iterable[str], /) -> None:
    """Raise where one of the names kept is of no tensor.

    Raises:
        ValueError: there is one; it says what to do about it.
    """
    for name in kept:
        if name in source.others:
            kind = source.others[name]
            convert = "convert it by torch.from_numpy, or " if kind == "ndarray" else ""
            raise ValueError(
                f"{source.title} holds a {kind} at {shown(name)}, no tensor; {convert}{source.advice}"
                f"leave it out by load_checkpoint(..., rename={{{shown(name)}: None}})"
            )


class _Place(NamedTuple):
    """Where safetensors have a tensor."""

    file: Path
    stored: Stored
    name: str


class Safetensors:
    """The tensors of safetensors files, of which one at a time is open."""

    def __init__(self, title: Path, files: list[Path]) -> None:
        self.title = str(title)
        self.forms: dict[str, Form] = {}
        self.others: dict[str, str] = {}
        self.advice = ""
        self._where: dict[str, _Place] = {}
        self._identities: dict[Path, tuple[int, ...]] = {}
        for path in files:
            with TensorFile(path) as file:
                self._identities[path] = file.identity
                for name, stored in file.tensors.items():
                    if name in self._where:
                        raise ValueError(f"{shown(name)} is in {self._where[name].file} and in {path}")
                    self.forms[name] = Form(stored.shape, stored.dtype)
                    self._where[name] = _Place(path, stored, name)

    def narrow(self, title: str, stored: Mapping[str, str]) -> None:
        """Hold a part of the tensors alone, under other names: by each new name, that in the file."""
        self.title = title
        self.forms = {name: self.forms[old] for name, old in stored.items()}
        self._where = {name: self._where[old] for name, old in stored.items()}

    def file_of(self, name: str) -> str:
        """The name of the file that holds a tensor."""
        return self._where[name].file.name

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for path, held in _by_file({name: self._where[name].file for name in names}).items():
            with TensorFile(path) as file:
                if file.identity != self._identities[path]:
                    _refuse_changed(path)
                for name in sorted(held, key=lambda n: self._where[n].stored.start):
                    yield name, file.read(self._where[name].name)


class InMemory:
    """Tensors that are there already: lent, so to be copied, or ours, to be given away."""

    def __init__(self, title: str, named: Named, *, lent: bool) -> None:
        self.title, self.others, self.advice = title, named.others, named.advice
        self._tensors, self._lent = named.tensors, lent
        self.forms = _forms(named)

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        wanted = {name: self._tensors[name] for name in names}
        if not self._lent:
            self._tensors = {}  # each goes as soon as whoever takes it lets it go
        used: set[int] = set()
        for name in list(wanted):
            x = wanted.pop(name).detach()
            if x.is_meta:
                raise ValueError(f"{shown(name)} of {self.title} is on the meta device, which holds no data")
            yield name, _alone(x, used, lent=self._lent)
            del x


class TorchShards:
    """The tensors of several files of torch, of which one at a time is in memory: each is read twice."""

    def __init__(self, title: Path, files: list[Path]) -> None:
        self.title = str(title)
        self.forms: dict[str, Form] = {}
        self.others: dict[str, str] = {}
        self.advice = ""
        self._where: dict[str, Path] = {}
        self._identities: dict[Path, tuple[int, ...]] = {}
        for path in files:
            self._look_into(path)

    def _look_into(self, path: Path) -> None:
        named, self._identities[path] = read_torch(path, None)
        for name in (*named.tensors, *named.others):
            if name in self._where:
                raise ValueError(f"{shown(name)} is in {self._where[name].name} and in {path.name}")
            self._where[name] = path
        self.forms |= _forms(named)
        self.others |= named.others
        self.advice = named.advice

    def file_of(self, name: str) -> str:
        """The name of the file that holds a tensor."""
        return self._where[name].name

    def read(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        for path, held in _by_file({name: self._where[name] for name in names}).items():
            yield from InMemory(self.title, self._again(path), lent=False).read(held)

    def _again(self, path: Path) -> Named:
        named, identity = read_torch(path, None)
        if identity != self._identities[path]:
            _refuse_changed(path)
        return named


def _forms(named: Named) -> dict[str, Form]:
    return {name: Form(tuple(x.shape), x.dtype, x.layout) for name, x in named.tensors.items()}


def _by_file(where: dict[str, Path]) -> dict[Path, dict[str, None]]:
    held: dict[Path, dict[str, None]] = {}
    for name, path in where.items():
        held.setdefault(path, {})[name] = None
    return held


def _refuse_changed(path: Path) -> NoReturn:
    raise ValueError(f"{path} was changed while it was read")


def _alone(x: Tensor, used: set[int], *, lent: bool) -> Tensor:
    """A tensor in memory of its own; `used` is the memory given away so far."""
    if x.layout is not torch.strided:
        return x.clone() if lent else x
    x = x.resolve_conj().resolve_neg()
    memory = x.untyped_storage()
    whole = x.is_contiguous() and memory.nbytes() == x.numel() * x.element_size()
    if lent or not whole or memory.data_ptr() in used:
        x = x.clone(memory_format=torch.contiguous_format)
    used.add(memory.data_ptr())
    return x
