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
from fluxlike.files.description import STORED, Description
from fluxlike.files.durable import write_whole
from fluxlike.files.fitting import fitted
from fluxlike.files.naming import Naming, as_stored
from fluxlike.files.parts import part_of, parts_in
from fluxlike.files.placing import placed, require_model
from fluxlike.files.printing import shown
from fluxlike.files.reader import Stored, TensorFile, bytes_of
from fluxlike.files.writer import parts_of
from fluxlike.placement.mesh import used
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["FORMAT", "described", "load", "require_readable", "save"]

#: The name of the description among the metadata of a file.
FORMAT = "fluxlike"


def save(path: str | os.PathLike[str], tree: Any, /) -> None:
    """Write a tree to a safetensors file: a model, the state of an optimiser, or both in a dict.

    Ties are kept, and each tensor is stored once. The file is written beside its place, brought to the
    disk and renamed, so a save that dies half-way leaves an older file whole. Functions are stored by name,
    by which `load` compares them; it can't tell two lambdas apart, so give an activation a name by ``def``.

    A tree over a mesh is gathered, tensor by tensor, in the main memory of the first rank, which alone
    writes: every rank calls `save`, and returns when the file is there. Where one rank can't hold the tree,
    take `fluxlike.distributed.save`.

    Args:
        path: the file. One that is there is replaced.
        tree: any tree.

    Raises:
        ValueError: a tensor without data (on the meta device, or of a trace of `jit`), or of a layout or
            dtype that the format lacks; or a pipe or a device is at the path.
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
    naming = Naming(tree)
    mesh = used.mesh()
    if mesh is None or not any(map(mesh.over, naming.tensors.values())):
        _write(path, tree, naming.entries, naming.tensors)
        return
    from fluxlike.placement.mesh import ranks  # which imports torch.distributed

    tensors: dict[str, Tensor] = {}
    for name, x in naming.tensors.items():
        whole = mesh.whole(x.detach())
        if ranks.number() == 0:
            tensors[name] = whole.cpu()
    ranks.alone(lambda: _write(path, tree, naming.entries, tensors))


def _write(
    path: str | os.PathLike[str], tree: Any, entries: dict[str, Any], tensors: dict[str, Tensor]
) -> None:
    prepared, checksums = _prepared(tensors)
    about = description.written(tree, entries, checksums)
    try:
        write_whole(path, parts_of(prepared, {FORMAT: about}), require_readable)
    except ValueError as error:
        raise ValueError(f"can't save to {path}: {error}") from error


def require_readable(path: Path) -> None:
    """Refuse a file whose header is too large to be read.

    Raises:
        ValueError: it is.
    """
    with TensorFile(path):
        pass


def _prepared(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Tensors as they are written, in main memory and no two in the same, and the checksum of each."""
    prepared: dict[str, Tensor] = {}
    taken: set[int] = set()
    for name, x in tensors.items():
        x = as_stored(x.detach().cpu()).contiguous()
        memory = x.untyped_storage().data_ptr()
        if memory in taken or x.untyped_storage().nbytes() != x.numel() * x.element_size():
            x = x.clone()
        taken.add(memory)
        prepared[name] = x
    return prepared, {name: zlib.crc32(bytes_of(x)) if x.numel() else 0 for name, x in prepared.items()}


def load(path: str | os.PathLike[str], /, like: Any, *, part: str | None = None) -> Any:
    """Read a tree that `save` wrote, or one part of it.

    Args:
        path: the file.
        like: a tree of the structure expected, such as a newly made model and state. Functions and
            other objects are taken from it, tensors and numbers from the file; tensors go to the
            devices that it has them on (from the meta device to main memory), and over a mesh where it has
            them there, divided as it has them.
        part: what to read of a file that holds more: a key such as ``"model"``, or a path as in `at`,
            ``"['runs'][0].model"``. Nothing else in the file is read. (default: the whole tree)

    Returns:
        A tree of the structure and ties of `like`.

    Raises:
        ValueError: the file is truncated, damaged or was not written by `save`; or it has no such part; or a
            leaf is missing, is not in `like`, or has another shape, dtype, type, name or setting. The first
            ten are named.
        TypeError: `like` is a class, or a module of torch.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile, os, torch, fluxlike as fl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "weights.safetensors")
        ...     fl.save(file, {"w": torch.ones(2)})
        ...     fl.load(file, like={"w": torch.empty(2)})
        {'w': tensor([1., 1.])}

        The model alone, of a file that holds more:

        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "run.safetensors")
        ...     fl.save(file, {"model": {"w": torch.ones(2)}, "epoch": 3})
        ...     fl.load(file, like={"w": torch.empty(2)}, part="model")
        {'w': tensor([1., 1.])}
    """
    require_model(like)
    leaves, treedef = flatten(like)
    where = structure_of(treedef).paths
    title = f"the file {path}"
    with TensorFile(path) as file:
        about = described(path, file)
        if part is not None:
            place, about = part_of(about, part, title)
            title = f"{shown(place)} of {title}"
        tensors = _tensors(file, about, dict(zip(where, leaves, strict=True)))
    try:
        tree = fitted(title, about, tensors, like)
    except ValueError as error:
        hint = "" if part is not None else _part_hint(about, like)
        raise ValueError(f"{error}{hint}") from None
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


def _part_hint(about: Description, like: Any) -> str:
    """What to write where the file is a dict with more in it than the tree expected: a part may be meant."""
    known = parts_in(about)
    own = like if isinstance(like, dict) else {}
    trees = {k for k in known if f"[{k!r}]" in about.nodes}  # which could be loaded alone
    if about.nodes.get("", {}).get("class") != "dict" or own.keys() >= trees:
        return ""
    of_class = (k for k in known if about.nodes.get(f"[{k!r}]", {}).get("class") == type(like).__name__)
    one = next((k for k in known if k in own), None) or next(of_class, known[0])
    names = ", ".join(map(shown, known[:10]))
    return f"\nthe parts of the file are {names}; one alone is read by load(path, like=…, part={shown(one)})"


def described(path: str | os.PathLike[str], file: TensorFile, /) -> Description:
    """What `save` wrote of the tree in a file.

    Raises:
        ValueError: `save` did not write it, or its header was changed.
    """
    if FORMAT not in file.metadata:
        raise ValueError(
            f"{path} is a safetensors file, but not one that fluxlike.save wrote; read its tensors into a "
            "model with fluxlike.load_checkpoint"
        )
    try:
        about = description.parse(file.metadata[FORMAT])
        stray = about.checksums.keys() ^ file.tensors.keys() or set(about.stored()) ^ file.tensors.keys()
        if stray:
            raise ValueError(f"{shown(min(stray))} is not both stored and described")
    except ValueError as error:
        raise ValueError(f"{path} has a header that can't be read: {error}") from error
    return about


def _tensors(file: TensorFile, about: Description, wanted: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors by name. One that is not of the size of any leaf it is for stays unread."""
    places = [(p, e, kind) for p, e in about.leaves.items() for kind in STORED if kind in e]
    fitting = {
        e[kind] or "tree"
        for p, e, kind in places
        if _bytes(wanted.get(p)) == _size(file.tensors[e[kind] or "tree"])
    }
    return {
        name: file.read(name, about.checksums[name])
        if name in fitting
        else torch.empty(stored.shape, dtype=stored.dtype, device="meta")
        for name, stored in file.tensors.items()
    }


def _size(stored: Stored) -> int:
    return stored.end - stored.start


def _bytes(x: Any) -> int | None:
    """The bytes that a leaf's values take, or None where it holds no tensor."""
    if isinstance(x, Assigned):
        x = x.value
    if isinstance(x, Tensor):
        return x.numel() * x.element_size()
    return x.nbytes if isinstance(x, (np.ndarray, np.generic)) else None
