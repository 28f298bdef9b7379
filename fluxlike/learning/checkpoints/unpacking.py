"""The values in the bytes of `pack`, which nobody vouches for.

Nothing is named there that could be run, and no size is believed that the bytes don't have.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.files.printing import shown
from fluxlike.files.strict_json import read_json
from fluxlike.learning.checkpoints.memory_order import in_order
from fluxlike.learning.checkpoints.packing import NUMPY, TORCH

__all__ = ["unpack"]


def unpack(data: bytes | bytearray | memoryview, /) -> Any:
    """The values that `pack` made bytes of, in fresh memory; tensors are in main memory.

    Raises:
        ValueError: `pack` did not make these bytes.
    """
    raw = memoryview(data)
    try:
        if len(raw) < 8 or int.from_bytes(raw[:8], "little") > len(raw) - 8:
            raise ValueError("its description is longer than itself")
        end = 8 + int.from_bytes(raw[:8], "little")
        about = read_json(str(raw[8:end], "utf-8", "surrogatepass"))
        if about.keys() != {"plain"}:
            raise ValueError(f"it describes {shown(list(about))}")
        unpacking = _Unpacking(raw[end:])
        plain = unpacking.value(about["plain"])
        if unpacking.rest:
            raise ValueError(f"{len(unpacking.rest)} bytes of it are not described")
    except (
        ValueError, TypeError, KeyError, RuntimeError, OverflowError, RecursionError, struct.error,
    ) as error:  # fmt: skip
        raise ValueError(f"the plain part of the checkpoint can't be read: {error}") from error
    return plain


class _Unpacking:
    def __init__(self, rest: memoryview) -> None:
        self.rest = rest
        self._seen: list[Any] = []
        self._kinds: dict[frozenset[str], Callable[[dict[str, Any]], Any]] = {
            frozenset(names): make
            for names, make in (
                (("dict",), self._dict),
                (("keys", "items"), self._pairs),
                (("tuple",), lambda about: tuple(self._list(about["tuple"]))),
                (("float",), lambda about: struct.unpack("<d", bytes.fromhex(about["float"]))[0]),
                (("complex",), self._complex),
                (("int",), lambda about: int.from_bytes(self._take(about["int"]), "little", signed=True)),
                (("bytes",), lambda about: bytes(self._take(about["bytes"]))),
                (("bytearray",), lambda about: bytearray(self._take(about["bytearray"]))),
                (("floats",), lambda about: self._column(about["floats"], "<f8")),
                (("ints",), lambda about: self._column(about["ints"], "<i8")),
                (("bools",), lambda about: self._column(about["bools"], "|b1")),
                (("rows", "columns"), self._rows),
                (("records", "columns"), self._records),
                (("again",), self._again),
                (("tensor", "shape"), self._tensor),
                (("tensor", "shape", "strides"), self._tensor),
                (("array", "shape"), lambda about: self._new(self._array(about["array"], about["shape"]))),
                (("scalar",), lambda about: self._new(self._array(about["scalar"], [])[()])),
            )
        }

    def value(self, about: Any) -> Any:
        if isinstance(about, list):
            return self._list(about)
        if not isinstance(about, dict):
            return about
        make = self._kinds.get(frozenset(about))
        if make is None:
            raise ValueError(f"nothing is described by {shown(list(about))}")
        return make(about)

    def _take(self, size: Any) -> memoryview:
        if type(size) is not int or not 0 <= size <= len(self.rest):
            raise ValueError(f"{shown(size)} bytes are described, {len(self.rest)} are there")
        taken, self.rest = self.rest[:size], self.rest[size:]
        return taken

    def _list(self, about: Any) -> list[Any]:
        if not isinstance(about, list):
            raise ValueError(f"{shown(about)} is no list")
        return [self.value(item) for item in about]

    def _dict(self, about: dict[str, Any]) -> dict[str, Any]:
        return {key: self.value(item) for key, item in about["dict"].items()}

    def _pairs(self, about: dict[str, Any]) -> dict[Any, Any]:
        keys, items = self._list(about["keys"]), self._list(about["items"])
        return dict(zip(keys, items, strict=True))

    def _complex(self, about: dict[str, Any]) -> complex:
        return complex(*struct.unpack("<dd", bytes.fromhex(about["complex"])))

    def _column(self, count: Any, dtype: str) -> list[Any]:
        return self._array(dtype, [count]).tolist()

    def _columns(self, about: dict[str, Any], names: int) -> list[list[Any]]:
        columns = self._list(about["columns"])
        if not columns or len(columns) != names or not all(isinstance(column, list) for column in columns):
            raise ValueError(f"a table of {names} names has {len(columns)} columns")
        return columns

    def _rows(self, about: dict[str, Any]) -> list[dict[str, Any]]:
        keys = about["rows"]
        columns = self._columns(about, len(keys))
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, strict=True)]

    def _records(self, about: dict[str, Any]) -> list[tuple[Any, ...]]:
        return list(zip(*self._columns(about, about["records"]), strict=True))

    def _again(self, about: dict[str, Any]) -> Any:
        number = about["again"]
        if type(number) is not int or not 0 <= number < len(self._seen):
            raise ValueError(f"number {shown(number)} of {len(self._seen)} tensors and arrays is there again")
        return self._seen[number]

    def _new(self, x: Any) -> Any:
        self._seen.append(x)
        return x

    def _tensor(self, about: dict[str, Any]) -> Tensor:
        dtype, shape = TORCH[about["tensor"]], about["shape"]
        data = self._take(_size(shape, dtype.itemsize))
        x = torch.empty(shape, dtype=dtype, device="cpu")
        if len(data):
            x.reshape(-1).view(torch.uint8).copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if dtype == torch.bool:
            _require_bools(data)
        return self._new(in_order(x, about.get("strides")))

    def _array(self, dtype: Any, shape: Any) -> np.ndarray[Any, Any]:
        if not isinstance(dtype, str) or not NUMPY.fullmatch(dtype):
            raise ValueError(f"{shown(dtype)} is no dtype of numbers, times or strings")
        made = np.dtype(dtype)
        data = self._take(_size(shape, made.itemsize))
        if made.kind == "b":
            _require_bools(data)
        raw = np.empty(len(data), np.uint8)
        raw[:] = data
        return raw.view(made).reshape(shape)


def _size(shape: Any, itemsize: int) -> int:
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape) or len(shape) > 64:
        raise ValueError(f"{shown(shape)} is no shape")
    if math.prod(max(n, 1) for n in shape) * itemsize >= 2**63:
        raise ValueError(f"{shown(shape)} is too large a shape")
    return math.prod(shape) * itemsize


def _require_bools(data: memoryview) -> None:
    if len(data) and np.frombuffer(data, np.uint8).max() > 1:
        raise ValueError("it holds bytes that are no bools")
