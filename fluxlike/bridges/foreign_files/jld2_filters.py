"""How JLD2 compresses an array: deflated, after a shuffle of its bytes or not.

Source: the HDF5 File Format Specification, version 3.0, IV.A.2.l; JLD2.jl, src/compression.jl.
"""

from __future__ import annotations

import zlib

import numpy as np

from fluxlike.bridges.foreign_files.jld2_types import Cursor

__all__ = ["read_filters", "unpacked"]

_DEFLATE, _SHUFFLE = 1, 2


def read_filters(content: bytes, /) -> list[tuple[int, str]]:
    """The filters that an array went through when it was written, by number and name."""
    cursor = Cursor(content)
    if cursor.number(1) != 2:
        raise ValueError("filters of another version than 2")
    found = []
    for _ in range(cursor.number(1)):
        code = cursor.number(2)
        length = cursor.number(2) if code > 255 else 0
        cursor.take(2)
        values = cursor.number(2)
        found.append((code, cursor.take(length).rstrip(b"\0").decode(errors="replace")))
        cursor.take(4 * values)
    return found


def unpacked(packed: bytes, filters: list[tuple[int, str]], size: int, each: int, /) -> bytes:
    """The bytes of an array whose numbers have `each`, and never more than `size`.

    Raises:
        ValueError: they are more, are damaged, or went through another filter.
    """
    for code, name in reversed(filters):
        if code == _DEFLATE:
            try:
                packed = zlib.decompressobj().decompress(packed, size + 1)
            except zlib.error as error:
                raise ValueError(f"it does not unpack: {error}") from error
            if len(packed) > size:
                raise ValueError(f"it unpacks to more than its {size} bytes")
        elif code == _SHUFFLE:
            packed = np.frombuffer(packed, np.uint8).reshape(each, -1).T.tobytes()
        else:
            raise ValueError(
                f"it is compressed by {name or 'filter'} ({code}); write the file without compression, "
                "or by deflate, as jldsave(path, true; …) does"
            )
    return packed
