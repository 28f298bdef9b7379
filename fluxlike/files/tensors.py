"""`save` and `load`: any tree in one safetensors file, with its structure as JSON.

Tensors are stored once, under the path of their first place. The header's metadata lists every leaf
by path: which stored tensor it is, or the plain value itself. Loading runs no code, believes no size
that the tree expected does not have, and finds damage by checksums.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.files import description
from fluxlike.files.description import STORED, Description, Places
from fluxlike.files.durable import write_whole
from fluxlike.files.placing import placed, require_model
from fluxlike.files.printing import shown
from fluxlike.files.reader import Stored, TensorFile, bytes_of
from fluxlike.files.writer import parts_of
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.state_dict import fit, is_plain
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["described", "load", "save"]

_FORMAT = "fluxlike"


def save(path: str | os.PathLike[str], tree: Any, /) -> None:
    """Write a tree to a safetensors file: a model, the state of an optimiser, or both in a dict.

    Ties are kept, and each tensor is stored once. The file is written beside its place, brought to the
    disk and renamed, so a save that dies half-way leaves an older file whole.

    Args:
        path: the file. One that is there is replaced.
        tree: any tree.

    Raises:
        ValueError: a tensor on the meta device, or of a layout or dtype that the format lacks; or a pipe or a
            device is at the path.
        OSError: the file can't be written; of a full disk, it says how much was needed and is free.

    Example:
        >>> import tempfile, os, fluxlike as fl
        >>> model = fl.Dense(2, 1, fl.tanh)
        >>> state = fl.setup(fl.Adam(), model)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "run.safetensors")
        ...     fl.save(file, {"model": model, "state": state})
        ...     run = fl.load(file, like={"model": fl.Dense(2, 1, fl.tanh), "state": state})
        >>> fl.tree.allclose(run["model"], model)
        True
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"save takes the path first, found a {type(path).__name__}: write save(path, tree)")
    leaves, treedef = flatten(tree)
    where = structure_of(treedef).paths
    stored = _Storing()
    entries = {p: stored.entry(p, x) for p, x in zip(where, leaves, strict=True)}
    about = description.written(tree, entries, stored.checksums)
    try:
        write_whole(path, parts_of(stored.tensors, {_FORMAT: about}), _require_readable)
    except ValueError as error:
        raise ValueError(f"can't save to {path}: {error}") from error


def _require_readable(path: Path) -> None:
    """What is too large to be read is not written."""
    with TensorFile(path):
        pass


class _Storing:
    """The tensors of a file, each once, by the name under which it is stored."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.checksums: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._kept: list[Tensor] = []  # while names go by id, no id may be used again
        self._memory: set[int] = set()

    def entry(self, path: str, x: Any) -> dict[str, Any]:
        """What the header says of one leaf."""
        if isinstance(x, Tensor):
            return {"tensor": self._store(path, x, path), **_view(x)}
        if isinstance(x, Assigned):
            return {"assigned": self._store(path, x.value, path), **_view(x.value)}
        if isinstance(x, (np.ndarray, np.generic)):
            kind = "array" if isinstance(x, np.ndarray) else "scalar"
            try:
                tensor = torch.from_numpy(np.array(x))
            except (TypeError, ValueError):  # of no such dtype, of the other byte order
                swapped = "" if x.dtype.isnative else f": write x.astype({x.dtype.newbyteorder('=').name!r})"
                raise ValueError(
                    f"{path or 'the root'} is a numpy array of {x.dtype}, which can't be saved{swapped}"
                ) from None
            return {kind: self._store(path, tensor, path), **_view(tensor)}
        return description.plain_entry(x)

    def _store(self, path: str, x: Tensor, name: str) -> str:
        if id(x) in self._names:
            return self._names[id(x)]
        if x.is_meta:
            raise ValueError(f"{path or 'the tensor'} is on the meta device, which holds no data to save")
        if x.layout is not torch.strided or x.is_quantized or x.is_nested:
            kind = "nested" if x.is_nested else x.dtype if x.is_quantized else x.layout
            raise ValueError(
                f"{path or 'the tensor'} is {kind}, which safetensors can't hold; save its parts, or "
                "x.to_dense()"
            )
        name = name or "tree"
        self._names[id(x)] = name
        self._kept.append(x)
        x = x.detach().cpu().resolve_conj().resolve_neg()
        if x.dtype == torch.complex128:
            x = torch.view_as_real(x)
        x = x.contiguous()
        memory = x.untyped_storage().data_ptr()
        if memory in self._memory or x.untyped_storage().nbytes() != x.numel() * x.element_size():
            x = x.clone()
        self._memory.add(memory)
        self.tensors[name] = x
        self.checksums[name] = zlib.crc32(bytes_of(x)) if x.numel() else 0
        return name


def _view(x: Tensor) -> dict[str, str]:
    return {"as": "complex128"} if x.dtype == torch.complex128 else {}


def load(path: str | os.PathLike[str], /, like: Any) -> Any:
    """Read a tree that `save` wrote.

    Args:
        path: the file.
        like: a tree of the structure expected, such as a newly made model and state. Functions and
            other objects are taken from it, tensors and numbers from the file; tensors go to the
            devices that it has them on (from the meta device to main memory).

    Returns:
        A tree of the structure and ties of `like`.

    Raises:
        ValueError: the file is truncated, damaged or was not written by `save`; or a leaf is missing, is
            not in `like`, or has another shape, dtype, type, name or setting. The first ten are named.
        TypeError: `like` is a class, or a module of torch.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile, os, torch, fluxlike as fl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "weights.safetensors")
        ...     fl.save(file, {"w": torch.ones(2)})
        ...     fl.load(file, like={"w": torch.empty(2)})
        {'w': tensor([1., 1.])}
    """
    require_model(like)
    leaves, treedef = flatten(like)
    where = structure_of(treedef).paths
    with TensorFile(path) as file:
        about = described(path, file)
        found = _values(path, file, about, dict(zip(where, leaves, strict=True)))
    differing = description.compare_nodes(like, about.nodes)
    places = Places(differing)
    wanted = {p: x for p, x in zip(where, leaves, strict=True) if not places.above(p)}
    found = {p: x for p, x in found.items() if not places.above(p)}
    names = {p: x for p, x in about.names().items() if not places.above(p)}
    faults = [fault for p, fault in differing.items() if not places.above(p)]
    faults += description.compare_names(wanted, names, found)
    plain = {p: x for p, x in found.items() if p not in wanted or is_plain(wanted[p])}
    known = {p for p in where if p not in wanted or (p in names and is_plain(wanted[p]))}
    tree = fit(like, plain, what=f"the file {path}", faults=faults, skip=known)
    loaded, treedef = flatten(tree)
    moved: dict[int, Tensor] = {}
    for i, (x, old) in enumerate(zip(loaded, leaves, strict=True)):
        if isinstance(x, Tensor):
            if id(x) not in moved:
                moved[id(x)] = placed(x, old)
            loaded[i] = moved[id(x)]
        elif isinstance(x, Assigned):
            loaded[i] = Assigned(placed(x.value, old.value))
    return treedef.unflatten(loaded)


def described(path: str | os.PathLike[str], file: TensorFile, /) -> Description:
    """What `save` wrote of the tree in a file.

    Raises:
        ValueError: `save` did not write it, or its header was changed.
    """
    if _FORMAT not in file.metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not one that fluxlike.save wrote; read its tensors into a "
            "model with fluxlike.load_checkpoint"
        )
    try:
        about = description.parse(file.metadata[_FORMAT])
        named = {entry[kind] or "tree" for entry in about.leaves.values() for kind in STORED if kind in entry}
        stray = about.checksums.keys() ^ file.tensors.keys() or named ^ file.tensors.keys()
        if stray:
            raise ValueError(f"{shown(min(stray))} is not both stored and described")
    except ValueError as error:
        raise ValueError(f"{path} has a header that can't be read: {error}") from error
    return about


def _values(
    path: str | os.PathLike[str], file: TensorFile, about: Description, wanted: dict[str, Any]
) -> dict[str, Any]:
    """The values by path. A tensor that is not of the size of any leaf it is for stays unread."""
    places = [(p, e, kind) for p, e in about.leaves.items() for kind in STORED if kind in e]
    fitting = {
        e[kind] or "tree"
        for p, e, kind in places
        if _bytes(wanted.get(p)) == _size(file.tensors[e[kind] or "tree"])
    }
    tensors = {
        name: file.read(name, about.checksums[name])
        if name in fitting
        else torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        for name, stored in file.tensors.items()
    }
    viewed: dict[str, tuple[bool, str | None, Tensor]] = {}  # once, so that ties stay ties
    found: dict[str, Any] = {}
    try:
        for p, entry in about.leaves.items():
            kind = next(iter(entry))
            if kind not in STORED:
                if kind != "name":
                    found[p] = description.plain_value(entry)
                continue
            name = entry[kind] or "tree"
            in_numpy, view = kind in ("array", "scalar"), entry.get("as")
            if name not in viewed:
                x = torch.view_as_complex(tensors[name]) if view else tensors[name]
                viewed[name] = in_numpy, view, x
            elif viewed[name][:2] != (in_numpy, view):
                raise ValueError(f"{shown(p)} is {shown(name)} in another view")
            found[p] = _as_kind(kind, viewed[name][2])
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{path} has a header that can't be read: {error}") from error
    return found


def _size(stored: Stored) -> int:
    return stored.end - stored.start


def _bytes(x: Any) -> int | None:
    """The bytes that a leaf's values take, or None where it holds no tensor."""
    if isinstance(x, Assigned):
        x = x.value
    if isinstance(x, Tensor):
        return x.numel() * x.element_size()
    return x.nbytes if isinstance(x, (np.ndarray, np.generic)) else None


def _as_kind(kind: str, x: Tensor) -> Any:
    if kind == "tensor":
        return x
    if kind == "assigned":
        return Assigned(x)
    if x.is_meta:  # a shape alone, to be compared
        return np.broadcast_to(torch.empty((), dtype=x.dtype, device="cpu").numpy(), x.shape)
    return x.numpy() if kind == "array" else x.numpy()[()]
