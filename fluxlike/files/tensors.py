"""`save` and `load`: any tree in one safetensors file, with its structure as JSON.

Tensors are stored once, under the path of their first place. The header's metadata lists every leaf
by path: which stored tensor it is, or the plain value itself. Functions and other objects are
written as their names, to be compared, never imported: loading runs no code.
"""

from __future__ import annotations

import base64
import contextlib
import enum
import functools
import json
import math
import os
import re
import secrets
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from fluxlike.trees import paths
from fluxlike.trees.functor import NAMESPACE, spec_of
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.nodes import PIN
from fluxlike.trees.show import value_text
from fluxlike.trees.state_dict import fit, is_plain
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["load", "save"]

_FORMAT = "fluxlike"
_VERSION = 1


def save(path: str | os.PathLike[str], tree: Any, /) -> None:
    """Write a tree to a safetensors file: a model, the state of an optimiser, or both in a dict.

    Ties are kept, and each tensor is stored once. The file is written beside its place and renamed,
    so a save that dies half-way leaves an older file whole.

    Args:
        path: the file. One that is there is replaced.
        tree: any tree.

    Raises:
        ValueError: a tensor on the meta device, or of a layout or dtype that the format lacks.
        OSError: the file can't be written.

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
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"save takes the path first, found a {type(path).__name__}: write save(path, tree)")
    leaves, treedef = flatten(tree)
    where = structure_of(treedef).paths
    stored = _Stored()
    entries = {p: stored.entry(p, x) for p, x in zip(where, leaves, strict=True)}
    about = {"version": _VERSION, "leaves": entries, "nodes": dict(_nodes(tree, ""))}
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to save into")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            mode = os.fstat(file.fileno()).st_mode  # safetensors makes files that only we may read
        save_file(stored.tensors, temporary, metadata={_FORMAT: json.dumps(about)})
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except KeyError as error:
        raise ValueError(f"can't save to {path}: safetensors has no dtype {error}") from error
    except SafetensorError as error:
        raise ValueError(f"can't save to {path}: {error}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


class _Stored:
    """The tensors of a file, each once, by the name under which it is stored."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
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
            except TypeError:
                raise ValueError(f"{path} is a numpy array of {x.dtype}, which can't be saved") from None
            return {kind: self._store(path, tensor, path), **_view(tensor)}
        if isinstance(x, enum.Enum):
            return {"name": _object_name(x)}
        if isinstance(x, bytes):
            return {"bytes": base64.b64encode(x).decode()}
        if isinstance(x, complex):
            return {"complex": [repr(x.real), repr(x.imag)]}
        if isinstance(x, float) and not math.isfinite(x):
            return {"float": repr(float(x))}
        if x is None or type(x) in (bool, int, float, str):
            return {"value": x}
        return {"name": _object_name(x)}

    def _store(self, path: str, x: Tensor, name: str) -> str:
        if id(x) in self._names:
            return self._names[id(x)]
        if x.is_meta:
            raise ValueError(f"{path or 'the tensor'} is on the meta device, which holds no data to save")
        if x.layout is not torch.strided or x.is_quantized:
            raise ValueError(
                f"{path or 'the tensor'} is {x.dtype if x.is_quantized else x.layout}, which safetensors "
                "can't hold; save x.to_dense() or its parts"
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
        return name


def _view(x: Tensor) -> dict[str, str]:
    return {"as": "complex128"} if x.dtype == torch.complex128 else {}


def _object_name(x: Any) -> str:
    if isinstance(x, enum.Enum):
        return f"{type(x).__name__}.{x.name}"
    if isinstance(x, functools.partial):
        given = [repr(a) if _printable(a) else _object_name(a) for a in (*x.args, *x.keywords.values())]
        labels = [*[""] * len(x.args), *(f"{k}=" for k in x.keywords)]
        inside = "".join(f", {label}{text}" for label, text in zip(labels, given, strict=True))
        return f"partial({_object_name(x.func)}{inside})"
    return getattr(x, "__name__", None) or f"{type(x).__name__} object"


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """For each node its class by name, and its plain attributes that are not children, in print."""
    if not paths.is_node(node):
        return
    settings = {}
    if spec_of(type(node)) is not None:
        static: Any = optree.tree_flatten_one_level(node, none_is_leaf=True, namespace=NAMESPACE)[1]
        settings = {n: repr(v) for n, v in static[1].values.items() if _printable(v)}
    yield path, {"class": type(node).__name__, "settings": settings}
    for step, child in paths.children(node):
        yield from _nodes(child, path + step.text)


def _printable(x: Any) -> bool:
    if isinstance(x, (tuple, list)):
        return all(map(_printable, x))
    return x is None or isinstance(x, (bool, int, float, str))


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
        ValueError: the file is truncated or was not written by `save`; or a leaf is missing, is not in
            `like`, or has another shape, dtype, type, name or setting. All mismatches are named.
        FileNotFoundError: there is no such file.

    Example:
        >>> import tempfile, os, torch, fluxlike as fl
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "weights.safetensors")
        ...     fl.save(file, {"w": torch.ones(2)})
        ...     fl.load(file, like={"w": torch.empty(2)})
        {'w': tensor([1., 1.])}
    """
    leaves, treedef = flatten(like)
    where = structure_of(treedef).paths
    found, names, nodes = _read(path)
    differing = _compare_nodes(like, nodes)
    wanted = {p: x for p, x in zip(where, leaves, strict=True) if _outside(p, differing)}
    found = {p: x for p, x in found.items() if _outside(p, differing)}
    names = {p: x for p, x in names.items() if _outside(p, differing)}
    faults = [fault for p, fault in differing.items() if _outside(p, differing)]
    faults += _compare_names(wanted, names, found)
    plain = {p: x for p, x in found.items() if p not in wanted or is_plain(wanted[p])}
    known = {p for p in where if p not in wanted or (p in names and is_plain(wanted[p]))}
    tree = fit(like, plain, what=f"the file {path}", faults=faults, skip=known)
    loaded, treedef = flatten(tree)
    moved: dict[int, Tensor] = {}
    for i, (x, old) in enumerate(zip(loaded, leaves, strict=True)):
        if isinstance(x, Tensor):
            device = torch.device("cpu") if old.is_meta else old.device
            loaded[i] = moved.setdefault(id(x), x.to(device))
        elif isinstance(x, Assigned):
            loaded[i] = Assigned(x.value.to(old.value.device))
    return treedef.unflatten(loaded)


def _read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, str], dict[str, Any]]:
    """The values of a file by path, the names of its objects by path, and its nodes."""
    from safetensors import SafetensorError, safe_open

    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if _FORMAT not in metadata:
                raise ValueError(
                    f"{path} is a safetensors file, but not one that fluxlike.save wrote; read its tensors "
                    "with safetensors.torch.load_file"
                )
            # Copies, because the file's own memory is mapped and may change under us.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged, or no safetensors file: {error}") from error
    try:
        about = json.loads(metadata[_FORMAT])
        if about["version"] != _VERSION:
            raise ValueError(f"it is of version {about['version']!r}; this fluxlike reads {_VERSION}")
        names = {p: e["name"] for p, e in about["leaves"].items() if "name" in e}
        found = {p: _value(e, tensors) for p, e in about["leaves"].items() if "name" not in e}
        nodes = {
            p: {"class": str(n["class"]), "settings": dict(n["settings"])} for p, n in about["nodes"].items()
        }
    except (
        KeyError,
        TypeError,
        AttributeError,
        ValueError,
        IndexError,
        RecursionError,
        RuntimeError,
    ) as error:
        raise ValueError(
            f"{path} has a header that can't be read: {type(error).__name__}: {error}"
        ) from error
    return found, names, nodes


def _value(entry: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    """One leaf, from what the header says of it."""
    for kind in ("tensor", "assigned", "array", "scalar"):
        if kind in entry:
            name = entry[kind] or "tree"
            if entry.get("as") == "complex128" and not tensors[name].is_complex():
                tensors[name] = torch.view_as_complex(tensors[name])  # once, so that ties stay ties
            x = tensors[name]
            if kind == "tensor":
                return x
            if kind == "assigned":
                return Assigned(x)
            return x.numpy() if kind == "array" else x.numpy()[()]
    if "bytes" in entry:
        return base64.b64decode(entry["bytes"])
    if "complex" in entry:
        return complex(*map(float, entry["complex"]))
    if "float" in entry:
        return float(entry["float"])
    value = entry["value"]
    if not (value is None or isinstance(value, (bool, int, float, str))):
        raise TypeError(f"a plain value is a {type(value).__name__}")
    return value


def _compare_names(wanted: dict[str, Any], names: dict[str, str], found: dict[str, Any]) -> list[str]:
    """What is wrong with the functions and other objects of the model."""
    faults = []
    for path, x in wanted.items():
        place, here = path or "the root", value_text(x)
        if is_plain(x):
            if path in names:
                faults.append(f"{place} is {names[path]} in the file, the model has {here}")
        elif path in found:
            faults.append(f"{place} is a {type(found[path]).__name__} in the file, the model has {here}")
        elif path not in names:
            faults.append(f"{place} is missing")
        elif names[path] != _object_name(x):
            faults.append(f"{place} is {names[path]} in the file, the model has {here}")
    return faults + [f"{p} is not in the model" for p in names if p not in wanted]


def _compare_nodes(like: Any, nodes: dict[str, Any]) -> dict[str, str]:
    """By path, what is wrong with the classes and settings: other ones would give other predictions."""
    faults = {}
    wanted = dict(_nodes(like, ""))
    for path, mine in wanted.items():
        theirs = nodes.get(path)
        if theirs is None:
            continue  # its leaves are missing too, or it has none and is named below
        if theirs["class"] != mine["class"]:
            found = theirs["class"]
            faults[path] = f"{path or 'the root'} is a {found} in the file, the model has a {mine['class']}"
            continue
        for name in mine["settings"].keys() | theirs["settings"].keys():
            a, b = theirs["settings"].get(name), mine["settings"].get(name)
            # A setting that only one of them has was added to the class, or removed; a pin was not.
            if a != b and (name == PIN or (a is not None and b is not None)):
                what = f"the pinned mode of {path or 'the root'}" if name == PIN else f"{path}.{name}"
                faults[f"{path}.{name}"] = f"{what} is {a} in the file, the model has {b}"
    for path in nodes.keys() - wanted.keys():
        faults[path] = f"{path} is a {nodes[path]['class']} in the file, the model has none"
    for path in wanted.keys() - nodes.keys():
        faults[path] = f"{path} is a {wanted[path]['class']} in the model, the file has none"
    return faults


def _outside(path: str, places: Container[str]) -> bool:
    """Whether a path lies below none of some places, whose own mismatch says all."""
    steps = re.findall(r"\.[^.\[]+|\[[^\]]*\]", path)
    return not any("".join(steps[:n]) in places for n in range(len(steps)))
