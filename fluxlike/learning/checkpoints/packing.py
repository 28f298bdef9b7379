"""Values of no fixed structure as bytes: the states of callbacks, the history of a run.

The bytes are a length, JSON that describes the structure, and the numbers of tensors, arrays and long lists
one after another. `fluxlike.learning.checkpoints.unpacking` reads them.
"""

from __future__ import annotations

import json
import math
import re
import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fluxlike.files.reader import DTYPES, bytes_of
from fluxlike.files.strict_json import require_few
from fluxlike.learning.checkpoints.memory_order import order_of

__all__ = ["TORCH", "NUMPY", "pack"]

#: The dtypes of tensors by name.
TORCH = {**DTYPES, "C128": torch.complex128}
_NAMES = {dtype: name for name, dtype in TORCH.items()}
#: What dtypes of arrays are called: of numbers, bools, times and strings, never of objects.
NUMPY = re.compile(r"[<>|][biufcmMSU][1-9]\d*(\[\d*[A-Za-zμ]+\])?")
_DEEPEST = 100  # levels
_LONG = 16  # items from which a list of numbers, or of records alike, is stored by columns
_SIMPLE = {type(None), bool, int, float, str}
_LISTS = {float: ("floats", "<f8"), int: ("ints", "<i8"), bool: ("bools", "|b1")}


def pack(plain: Any, /) -> bytearray:
    """Plain values as bytes, exactly: tensors to the bit and in their order of memory, NaN and infinity too.

    Args:
        plain: None, bools, ints, floats, complex numbers, strings, bytes, tensors, arrays and scalars of
            numpy, and dicts, lists and tuples of them, at most 100 levels deep. Keys are hashable ones of
            these, without tensors or arrays. A tensor that stands at several places is stored once.

    Raises:
        TypeError: something else is there; its place is named.
        ValueError: it is nested too deeply, or is too much to be read back.

    Example:
        >>> from fluxlike.learning.checkpoints.packing import pack
        >>> from fluxlike.learning.checkpoints.unpacking import unpack
        >>> unpack(pack({"loss": [0.5, float("inf")], "best": (3, None)}))
        {'loss': [0.5, inf], 'best': (3, None)}
    """
    packing = _Packing()
    try:
        about = packing.said(plain, "", 0)
        text = json.dumps({"plain": about}, ensure_ascii=False).encode("utf-8", "surrogatepass")
        require_few(text)
    except ValueError as error:
        raise ValueError(f"the plain part of a checkpoint can't be stored: {error}") from None
    return bytearray().join([len(text).to_bytes(8, "little"), text, *packing.data])


class _Packing:
    def __init__(self) -> None:
        self.data: list[bytes | memoryview] = []
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # while numbers go by id, no id may be used again

    def said(self, x: Any, path: str, depth: int) -> Any:
        """What the JSON says of a value; its numbers are put beside it."""
        kind = type(x)
        if x is None or kind in (bool, str):
            return x
        if kind is int:
            return x if -(2**63) <= x < 2**63 else {"int": self._bytes(_bytes_of_int(x))}
        if kind is float:
            return x if math.isfinite(x) else {"float": struct.pack("<d", x).hex()}
        if kind is complex:
            return {"complex": struct.pack("<dd", x.real, x.imag).hex()}
        if kind in (bytes, bytearray):
            return {kind.__name__: self._bytes(x)}
        if kind in (dict, list, tuple):
            if depth == _DEEPEST:
                place = f"{path[:60]}… " if len(path) > 60 else path
                raise ValueError(f"{place} is more than {_DEEPEST} levels deep, or holds itself")
            said = self._dict if kind is dict else self._list if kind is list else self._tuple
            return said(x, path, depth + 1)
        if isinstance(x, (Tensor, np.ndarray, np.generic)):
            return self._numbers(x, path)
        raise TypeError(
            f"{path or 'the plain part of a checkpoint'} is a {kind.__qualname__}: callbacks and histories "
            "are stored as None, numbers, strings, bytes, tensors, numpy arrays, and dicts, lists and tuples "
            "of them; write its parts so, as dict(x) or list(x), and put models and states into the tree"
        )

    def _dict(self, x: dict[Any, Any], path: str, depth: int) -> Any:
        if all(type(key) is str for key in x):
            return {"dict": {key: self.said(item, f"{path}[{key!r}]", depth) for key, item in x.items()}}
        for key in x:
            _require_key(key, path)
        keys = [self.said(key, path, depth) for key in x]
        return {"keys": keys, "items": [self.said(v, f"{path}[{k!r}]", depth) for k, v in x.items()]}

    def _list(self, x: list[Any], path: str, depth: int) -> Any:
        kinds = set(map(type, x)) if len(x) >= _LONG else set()
        if len(kinds) == 1:
            kind = kinds.pop()
            if kind in _LISTS:
                return self._column(x, kind)
            columns = _columns(x, kind)
            if columns:
                names = {"rows": list(x[0])} if kind is dict else {"records": len(columns)}
                return {**names, "columns": [self._list(column, path, depth) for column in columns]}
        return [self.said(item, f"{path}[{i}]", depth) for i, item in enumerate(x)]

    def _column(self, x: list[Any], kind: type) -> Any:
        name, dtype = _LISTS[kind]
        try:
            self._bytes(np.array(x, dtype=dtype).tobytes())
        except OverflowError:  # whole numbers beyond 64 bits
            return [self.said(item, "", 0) for item in x]
        return {name: len(x)}

    def _tuple(self, x: tuple[Any, ...], path: str, depth: int) -> Any:
        return {"tuple": [self.said(item, f"{path}[{i}]", depth) for i, item in enumerate(x)]}

    def _numbers(self, x: Any, path: str) -> Any:
        if id(x) in self._seen:
            return {"again": self._seen[id(x)]}
        self._seen[id(x)] = len(self._seen)
        self._kept.append(x)
        return self._tensor(x, path) if isinstance(x, Tensor) else self._array(x, path)

    def _tensor(self, x: Tensor, path: str) -> Any:
        place = path or "the plain part of a checkpoint"
        if (
            type(x) not in (Tensor, nn.Parameter)
            or x.layout is not torch.strided
            or x.is_quantized
            or x.is_meta
        ):
            what = "on the meta device" if x.is_meta else f"a {type(x).__name__} of {x.dtype}, {x.layout}"
            raise TypeError(f"{place} is {what}; only dense tensors with data are stored: x.to_dense()")
        if x.dtype not in _NAMES:
            raise TypeError(f"{place} is a tensor of {x.dtype}, which can't be stored; convert it")
        x = x.detach().cpu().resolve_conj().resolve_neg()
        strides = order_of(x)
        self._bytes(bytes_of(x.contiguous()) if x.numel() else b"")
        about = {"tensor": _NAMES[x.dtype], "shape": list(x.shape)}
        return about if strides is None else {**about, "strides": strides}

    def _array(self, x: Any, path: str) -> Any:
        exact = type(x) is np.ndarray or (isinstance(x, np.generic) and x.dtype.kind not in "SU")
        if not exact or not NUMPY.fullmatch(x.dtype.str):
            raise TypeError(
                f"{path or 'the plain part of a checkpoint'} is a {type(x).__name__} of {x.dtype}; arrays of "
                "numbers, bools, times and strings are stored: convert it, or write it as lists and dicts"
            )
        self._bytes(np.asarray(x).tobytes())
        if isinstance(x, np.generic):
            return {"scalar": x.dtype.str}
        return {"array": x.dtype.str, "shape": list(x.shape)}

    def _bytes(self, data: bytes | bytearray | memoryview) -> int:
        self.data.append(bytes(data) if isinstance(data, bytearray) else data)
        return len(data)


def _bytes_of_int(x: int) -> bytes:
    return x.to_bytes(x.bit_length() // 8 + 1, "little", signed=True)


def _columns(x: list[Any], kind: type) -> list[list[Any]] | None:
    """The columns of records that are alike and hold simple values."""
    if kind is dict:
        keys = list(x[0])
        alike = all(type(key) is str for key in keys) and all(list(row) == keys for row in x)
        columns = [[row[key] for row in x] for key in keys] if alike else []
    elif kind is tuple and len(set(map(len, x))) == 1:
        columns = [list(column) for column in zip(*x, strict=True)]
    else:
        return None
    return columns if all(_SIMPLE.issuperset(map(type, column)) for column in columns) else None


def _require_key(key: Any, path: str) -> None:
    if type(key) is tuple:
        for part in key:
            _require_key(part, path)
    elif key is not None and type(key) not in (bool, int, float, complex, str, bytes):
        raise TypeError(
            f"{path or 'the plain part of a checkpoint'} has a {type(key).__qualname__} as a key; keys are "
            "strings, numbers, bytes, None, and tuples of them"
        )
