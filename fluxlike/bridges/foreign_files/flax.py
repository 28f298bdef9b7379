"""The variables of a Flax model, saved by flax.serialization or as safetensors."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch

from fluxlike.bridges.foreign_files.faults import DEEPEST, FileFault, open_file, told
from fluxlike.bridges.foreign_files.loading import load_state
from fluxlike.files.reader import TensorFile
from fluxlike.optional import optional

__all__ = ["load_flax", "read_flax"]

_KIND = "a file of flax.serialization.to_bytes(variables)"
_ORBAX = "for an Orbax folder, restore it in Flax and write such a file"
_MOST_CONTAINERS = _MOST_ENTRIES = 100_000
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3  # the extension types of flax.serialization
_CHUNKED = "__msgpack_chunked_array__"
_DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
)


def load_flax(path: str | os.PathLike[str], /, like: Any, *, inputs: Any = None) -> Any:
    """A model with the arrays of a Flax model, from msgpack or safetensors.

    In Flax: ``open("model.msgpack", "wb").write(flax.serialization.to_bytes(variables))``, of the variables
    of a Linen module, of ``nnx.to_pure_dict(nnx.state(model))``, or of a TrainState, whose ``opt_state``
    is left out. In safetensors, names are joined by dots or slashes.

    Args:
        path: the file.
        like: a model of ours of the same layers. Settings are its own.
        inputs: an example of the input, where a Dense follows a flatten of images, as in `convert_layout`.
            (default: there is no flatten)

    Returns:
        A model of the structure and ties of `like`, which is unchanged.

    Raises:
        ValueError: the file is damaged, or of another kind; or an array is missing, left over, or of
            another shape or dtype, all of which are named at once. For a file of another precision, give
            ``like=fl.bf16(model)`` or the like.
        FileNotFoundError: there is no such file.
        ImportError: msgpack is not installed: ``pip install 'fluxlike[flax]'``.

    Example:
        >>> import fluxlike as fl
        >>> model = fl.Chain(fl.Dense(784, 128, fl.relu), fl.Dense(128, 10))
        >>> model = fl.load_flax("model.msgpack", like=model)  # doctest: +SKIP
    """
    state = read_flax(path)
    if "params" in state:
        state = {name: x for name, x in state.items() if name != "opt_state"}
    return load_state(path, like, state, "flax", inputs=inputs)


def read_flax(path: str | os.PathLike[str], /) -> dict[Any, Any]:
    """What a file of Flax holds, without Flax and JAX.

    For variables that have to be rearranged before `load_foreign_state` takes them, or only to look.

    Args:
        path: a file of `flax.serialization`, or of safetensors with names joined by dots or slashes.

    Returns:
        Nested dicts of numpy arrays; those of bfloat16 and of a safetensors file are tensors.

    Raises:
        ValueError: the file is damaged, or of another kind.
        FileNotFoundError: there is no such file.
        ImportError: msgpack is not installed: ``pip install 'fluxlike[flax]'``.

    Example:
        >>> import fluxlike as fl, os, tempfile, torch
        >>> from safetensors.torch import save_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = os.path.join(folder, "model.safetensors")
        ...     save_file({"params.Dense_0.bias": torch.zeros(2)}, file)
        ...     fl.read_flax(file)
        {'params': {'Dense_0': {'bias': tensor([0., 0.])}}}
    """
    with open_file(path, f"{_KIND}; {_ORBAX}") as file, told(os.fspath(path), _KIND):
        start = file.read(9)
        length, size = int.from_bytes(start[:8], "little"), os.fstat(file.fileno()).st_size
        if start[8:] != b"{" or length > size - 8:
            return _Msgpack(os.fspath(path)).read(start + file.read())
    try:
        return _safetensors(path)
    except ValueError as error:
        raise FileFault(str(error)) from None


def _safetensors(path: str | os.PathLike[str]) -> dict[Any, Any]:
    with TensorFile(path) as file:
        tensors = {name: file.read(name) for name in file.tensors}
    separator = "/" if any("/" in name for name in tensors) else "."
    nested: dict[Any, Any] = {}
    for name, x in tensors.items():
        *above, last = name.split(separator)
        if len(above) > DEEPEST:
            raise FileFault(f"{os.fspath(path)}: {name} has more than {DEEPEST} names in one")
        node = nested
        for step in above:
            node = node.setdefault(step, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise FileFault(f"{os.fspath(path)}: {name} is an array, and a part of another name")
        node[last] = x
    return nested


class _Msgpack:
    """One file of flax.serialization."""

    def __init__(self, name: str) -> None:
        self._msgpack = optional("msgpack", "a file of Flax", install="'fluxlike[flax]'")
        self._name, self._left = name, _MOST_CONTAINERS

    def read(self, data: bytes) -> dict[Any, Any]:
        with told(self._name, _KIND):
            found = self._unpacked(data)
            if not isinstance(found, dict):
                raise FileFault(f"{self._name} is not {_KIND}: it holds a {type(found).__name__}")
            return self._joined(found, "", 0)

    def _unpacked(self, data: bytes) -> Any:
        return self._msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=False,
            ext_hook=self._extension,
            list_hook=self._list,
            object_pairs_hook=self._dict,
            max_array_len=_MOST_ENTRIES,
            max_map_len=_MOST_ENTRIES,
        )

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise FileFault(
                f"{self._name} holds more than {_MOST_CONTAINERS} dicts and lists; no checkpoint does"
            )

    def _list(self, items: list[Any]) -> list[Any]:
        self._count()
        return items

    def _dict(self, pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
        self._count()
        found = dict(pairs)
        if len(found) != len(pairs):
            raise FileFault(
                f"{self._name} has two entries of one name, among {', '.join(map(str, found))[:80]}"
            )
        return found

    def _extension(self, code: int, data: bytes) -> Any:
        if code == _COMPLEX:
            return complex(*self._msgpack.unpackb(data, max_array_len=2))
        if code not in (_ARRAY, _SCALAR):
            raise FileFault(f"{self._name} holds an extension of the type {code}, which Flax does not write")
        shape, dtype, content = self._msgpack.unpackb(data, max_array_len=64)
        array = self._array(shape, dtype, content)
        return array if code == _ARRAY else array[()]

    def _array(self, shape: Any, dtype: Any, content: Any) -> Any:
        if dtype not in _DTYPES:
            raise FileFault(f"{self._name} holds an array of {dtype!r}; convert it to float32 in Flax")
        if not all(type(n) is int and n >= 0 for n in shape) or not isinstance(content, bytes):
            raise FileFault(f"{self._name} holds an array of the shape {shape!r}")
        stored = np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")
        if math.prod(shape) * stored.itemsize != len(content):
            raise FileFault(f"{self._name} holds an array {tuple(shape)} of {dtype}, in {len(content)} bytes")
        array = np.frombuffer(content, stored).reshape(shape)
        # numpy has no bfloat16
        return torch.from_numpy(array.copy()).view(torch.bfloat16) if dtype == "bfloat16" else array

    def _joined(self, found: Any, place: str, depth: int) -> Any:
        """Containers, with the arrays that Flax writes in chunks in one piece."""
        if depth > DEEPEST:
            raise FileFault(
                f"{self._name}: {place} lies in more than {DEEPEST} containers; no checkpoint does"
            )
        if isinstance(found, list):
            return [self._joined(x, f"{place}[{i}]", depth + 1) for i, x in enumerate(found)]
        if not isinstance(found, dict):
            return found
        if _CHUNKED in found:
            return self._whole(found, place)
        return {k: self._joined(x, f"{place}[{k!r}]", depth + 1) for k, x in found.items()}

    def _whole(self, found: dict[Any, Any], place: str) -> Any:
        """``{"shape": {"0": …}, "chunks": {"0": …}}``"""
        shape, chunks = ([found[k][str(i)] for i in range(len(found[k]))] for k in ("shape", "chunks"))
        parts = [x if isinstance(x, torch.Tensor) else torch.from_numpy(np.array(x)) for x in chunks]
        flat = torch.cat([x.flatten() for x in parts])
        if not all(type(n) is int and n >= 0 for n in shape) or flat.numel() != math.prod(shape):
            raise FileFault(
                f"{self._name}: {place} has the shape {shape}, in chunks of {flat.numel()} numbers"
            )
        whole = flat.reshape(shape)
        return whole if whole.dtype is torch.bfloat16 else whole.numpy()
