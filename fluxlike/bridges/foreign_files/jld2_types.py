"""The types and shapes of HDF5, as JLD2.jl writes them.

Source: the HDF5 File Format Specification, version 3.0, IV.A.2.b and d; JLD2.jl, src/datatypes.jl and
src/dataspaces.jl.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np

from fluxlike.bridges.foreign_files.faults import DEEPEST

__all__ = ["NULL", "SCALAR", "SIMPLE", "Cursor", "Kind", "read_kind", "read_space"]

SCALAR, SIMPLE, NULL = range(3)  # of a shape
#: By size: where the sign, the mantissa and the exponent are, and the exponent's bias.
_FLOATS = {2: (15, 10, 5, 15), 4: (31, 23, 8, 127), 8: (63, 52, 11, 1023)}
_FAMILIES = (
    "integer",
    "float",
    "time",
    "text",
    "bits",
    "opaque",
    "compound",
    "reference",
    "enum",
    "sequence",
)


class Kind(NamedTuple):
    """A type: its family, its size, and its numpy dtype or its fields; where it is committed, if it is."""

    family: str
    size: int
    dtype: Any = None
    fields: tuple[tuple[str, int, Kind], ...] = ()
    committed: int | None = None


class Cursor:
    """Bytes that are read one after the other, and no further than they go."""

    def __init__(self, data: bytes, at: int = 0) -> None:
        self.data, self.at = data, at

    def take(self, n: int) -> bytes:
        if n < 0 or self.at + n > len(self.data):
            raise ValueError(f"something of {n} bytes ends behind what holds it")
        self.at += n
        return self.data[self.at - n : self.at]

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def name(self) -> str:
        end = self.data.index(b"\0", self.at)
        found = self.take(end - self.at)
        self.at += 1
        return found.decode()

    def left(self) -> int:
        return len(self.data) - self.at


def read_space(content: bytes, /) -> tuple[int, tuple[int, ...]]:
    """Whether there is one value, an array or nothing, and the shape."""
    cursor = Cursor(content)
    version, n, _ = (cursor.number(1) for _ in range(3))
    if version not in (1, 2) or n > 32:
        raise ValueError(f"a shape of {n} axes, of version {version}")
    family = cursor.number(1) if version == 2 else SIMPLE if n else SCALAR
    cursor.take(4 * (version == 1))
    shape = tuple(cursor.number(8) for _ in range(n))
    if family > NULL or (family == SCALAR and n):
        raise ValueError(f"a shape of the kind {family}")
    return family, shape


def read_kind(cursor: Cursor, depth: int = 0, /) -> Kind:
    """A type; the cursor is left behind it."""
    first, low, middle, _ = cursor.take(4)
    number, version, size = first & 15, first >> 4, cursor.number(4)
    if depth > DEEPEST or version not in (1, 2, 3) or number >= len(_FAMILIES):
        raise ValueError(f"a type {number} of version {version}, in {depth} others")
    family = _FAMILIES[number]
    if family in ("integer", "bits"):
        offset, precision = cursor.number(2), cursor.number(2)
        if offset or precision != 8 * size or size not in (1, 2, 4, 8):
            raise ValueError(f"integers of {precision} bits in {size} bytes")
        letter = "i" if family == "integer" and low & 8 else "u"
        return Kind(family, size, np.dtype(f"{'>' if low & 1 else '<'}{letter}{size}"))
    if family == "float":
        layout = struct.unpack("<HHBBBBI", cursor.take(12))
        sign, mantissa, exponent, bias = _FLOATS.get(size, (0, 0, 0, 0))
        if layout != (0, 8 * size, mantissa, exponent, 0, mantissa, bias) or middle != sign or low & 64:
            raise ValueError(f"floats of {size} bytes that numpy does not have")
        return Kind(family, size, np.dtype(f"{'>' if low & 1 else '<'}f{size}"))
    if family == "compound" and version == 3:
        return _compound(cursor, size, low | middle << 8, depth)
    if family == "sequence":
        inner = read_kind(cursor, depth + 1)
        return Kind("text" if low & 15 == 1 and inner.size == 1 else family, size)
    return Kind(f"fixed {family}" if family == "text" else family, size)


def _compound(cursor: Cursor, size: int, count: int, depth: int) -> Kind:
    width = 1 if size < 2**8 else 2 if size < 2**16 else 4
    fields = []
    for _ in range(count):
        name, offset = cursor.name(), cursor.number(width)
        inner = read_kind(cursor, depth + 1)
        if offset + inner.size > size:
            raise ValueError(f"the field {name} lies outside of its type")
        fields.append((name, offset, inner))
    if len({name for name, *_ in fields}) < count:
        raise ValueError(f"two of the fields {', '.join(name for name, *_ in fields)} are one")
    return Kind("compound", size, None, tuple(fields))
