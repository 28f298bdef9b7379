"""What a file of tensors holds: names, shapes, dtypes and plain values, without a model to put them into."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike.files.description import STORED, Description, parse, path_steps, plain_value
from fluxlike.files.locating import source_of
from fluxlike.files.opening import SAFETENSORS, START, TORCH, kind_of, open_regular
from fluxlike.files.printing import shown
from fluxlike.files.reader import TensorFile
from fluxlike.files.torch_file import read_torch

__all__ = ["Contents", "HeldTensor", "HeldValue", "contents_of"]

_FORMAT = "fluxlike"

_KINDS = dict(zip(STORED, ("tensor", "assigned tensor", "numpy array", "numpy scalar"), strict=True))

_SPARSE = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


class HeldTensor(NamedTuple):
    """One name of a tensor.

    Attributes:
        path: the whole name.
        steps: its parts.
        kind: ``"tensor"``, ``"numpy array"``, ``"numpy scalar"``, ``"assigned tensor"``, or a sparse layout.
        shape: the shape.
        dtype: the dtype, in print.
        numbers: how many numbers.
        bytes: how many bytes.
        tied_to: the name under which the same numbers stand first, or None.
    """

    path: str
    steps: tuple[str, ...]
    kind: str
    shape: tuple[int, ...]
    dtype: str
    numbers: int
    bytes: int
    tied_to: str | None


class HeldValue(NamedTuple):
    """One plain value.

    Attributes:
        path: the whole name.
        steps: its parts.
        entry: the value by its kind, as JSON: ``{"value": 3}``, ``{"float": "nan"}``, ``{"name": "relu"}``.
        text: the value in print.
    """

    path: str
    steps: tuple[str, ...]
    entry: dict[str, Any]
    text: str


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Attributes:
        title: the path.
        format: who wrote it.
        bytes: of the file, None for several files.
        held: every name of a tensor and every plain value, in the order of the file.
        nodes: the class of each container by its steps, where the file says so.
        metadata: the texts beside the tensors.
    """

    title: str
    format: str
    bytes: int | None
    held: list[HeldTensor | HeldValue]
    nodes: dict[tuple[str, ...], str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> list[HeldTensor]:
        """The names of tensors."""
        return [x for x in self.held if isinstance(x, HeldTensor)]

    @property
    def values(self) -> list[HeldValue]:
        """The plain values."""
        return [x for x in self.held if isinstance(x, HeldValue)]


def contents_of(path: str | os.PathLike[str], /) -> Contents:
    """What is in a safetensors file, a file of torch.save, an index of shards, or a folder of one.

    Of safetensors files the header alone is read; files of torch are read whole, as data, never run.

    Raises:
        ValueError: the file is damaged, or of another kind.
        FileNotFoundError: there is no such file.
    """
    path = Path(path)
    if path.is_file() and not path.name.endswith(".json"):
        with open_regular(path) as file:
            kind, size = kind_of(file.read(START)), os.fstat(file.fileno()).st_size
        if kind == SAFETENSORS:
            return _of_safetensors(path, size)
        if kind == TORCH:
            return _of_torch(path, size)
    source = source_of(path, None)
    tensors = [
        _held(name, tuple(name.split(".")), form.shape, form.dtype, _layout_text(form.layout))
        for name, form in source.forms.items()
    ]
    title = "a checkpoint in shards or a folder"
    return Contents(str(path), title, None, [*tensors, *_kinds(source.others)])


def _of_safetensors(path: Path, size: int) -> Contents:
    with TensorFile(path) as file:
        stored, metadata = file.tensors, dict(file.metadata)
    if _FORMAT in metadata:
        try:
            about = parse(metadata.pop(_FORMAT))
            found = _described(about, {name: (x.shape, x.dtype) for name, x in stored.items()})
        except ValueError as error:
            raise ValueError(f"{path} has a header that can't be read: {error}") from error
        nodes = {tuple(path_steps(p)): node["class"] for p, node in about.nodes.items()}
        return Contents(str(path), "written by fluxlike.save", size, found, nodes, metadata)
    ordered = sorted(stored.items(), key=lambda item: item[1].start)
    tensors = [_held(name, tuple(name.split(".")), x.shape, x.dtype) for name, x in ordered]
    return Contents(str(path), SAFETENSORS, size, [*tensors], metadata=metadata)


def _described(
    about: Description, stored: dict[str, tuple[tuple[int, ...], torch.dtype]]
) -> list[HeldTensor | HeldValue]:
    """The tensors and plain values of a tree that `save` wrote."""
    held: list[HeldTensor | HeldValue] = []
    first: dict[str, str] = {}
    for path, entry in about.leaves.items():
        kind = next(iter(entry))
        if kind not in STORED:
            held.append(HeldValue(path, tuple(path_steps(path)), entry, _value_text(entry)))
            continue
        name = entry[kind] or "tree"
        if name not in stored:
            raise ValueError(f"{shown(name)} is described and not stored")
        shape, dtype = stored[name]
        if "as" in entry:
            if dtype != torch.float64 or shape[-1:] != (2,):
                raise ValueError(f"{shown(name)} is no complex128")
            shape, dtype = shape[:-1], torch.complex128
        held.append(_held(path, tuple(path_steps(path)), shape, dtype, _KINDS[kind], first.get(name)))
        first.setdefault(name, path)
    stray = stored.keys() - first.keys()
    if stray:
        raise ValueError(f"{shown(min(stray))} is stored and not described")
    return held


def _value_text(entry: dict[str, Any]) -> str:
    return shown(entry["name"])[1:-1] if "name" in entry else shown(plain_value(entry))


def _of_torch(path: Path, size: int) -> Contents:
    named, _ = read_torch(path, None)
    first: dict[Any, str] = {}
    tensors = []
    for name, x in named.tensors.items():
        place = _place(x)
        tied_to = first.setdefault(place, name) if place is not None else name
        held = _held(
            name,
            tuple(name.split(".")),
            tuple(x.shape),
            x.dtype,
            _layout_text(x.layout),
            None if tied_to == name else tied_to,
        )
        tensors.append(held._replace(bytes=_bytes(x)))
    return Contents(str(path), TORCH, size, [*tensors, *_kinds(named.others)])


def _place(x: Tensor) -> Any:
    """Where a tensor lies in memory; the same for tied ones, None where there is nothing to tie."""
    if x.layout is not torch.strided or not x.numel() or x.is_meta:
        return None
    return x.untyped_storage().data_ptr(), x.storage_offset(), tuple(x.shape), x.stride(), x.dtype


def _bytes(x: Tensor) -> int:
    parts = [getattr(x, name)() for name in _SPARSE.get(x.layout, ())]
    return sum(part.nbytes for part in parts) if parts else x.numel() * x.element_size()


def _layout_text(layout: torch.layout) -> str:
    return "tensor" if layout is torch.strided else f"{str(layout).removeprefix('torch.')} tensor"


def _held(
    path: str,
    steps: tuple[str, ...],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    kind: str = "tensor",
    tied_to: str | None = None,
) -> HeldTensor:
    count = math.prod(shape)
    text = str(dtype).removeprefix("torch.")
    return HeldTensor(path, steps, kind, tuple(shape), text, count, count * dtype.itemsize, tied_to)


def _kinds(others: dict[str, str]) -> list[HeldValue]:
    """Plain values of which only the kind is known."""
    return [HeldValue(name, tuple(name.split(".")), {"kind": kind}, kind) for name, kind in others.items()]
