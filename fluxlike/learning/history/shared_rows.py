"""Rows that tables share, so that one row more costs nearly nothing."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.learning.history.packed import ABSENT, Cells, packed, unpacked

__all__ = ["SharedRows"]

_PACK = 256  # rows


class SharedRows:
    """Rows that several tables share, each its first ones: full chunks by column, and the last rows.

    Attributes:
        lock: held by who looks at `length` and adds.
        length: how many rows there are.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.length = 0
        self._chunks: list[dict[str, Cells]] = []
        self._last: list[dict[str, Any]] = []
        self._names: dict[str, int] = {}  # and the row in which each came first

    def add(self, row: dict[str, Any], place: int, /) -> int:
        """Add the row of a place, the next one, and return how many there are then."""
        for name in row:
            if name not in self._names:
                self._names[name] = place
        self._last.append(row)
        self.length = place + 1
        if len(self._last) == _PACK:
            self._chunks.append(
                {
                    name: packed([row.get(name, ABSENT) for row in self._last])
                    for name in dict.fromkeys(key for row in self._last for key in row)
                }
            )
            self._last = []
        return self.length

    def first(self, length: int, /) -> SharedRows:
        """Rows of their own, the first of these."""
        other = SharedRows()
        whole = length // _PACK
        other._chunks, other.length = self._chunks[:whole], length
        other._last = [self.row(place) for place in range(whole * _PACK, length)]
        other._names = {name: place for name, place in self._names.items() if place < length}
        return other

    def names(self, length: int, /) -> tuple[str, ...]:
        """The names of the columns of the first rows, in the order in which they appeared."""
        with self.lock:
            return tuple(name for name, place in self._names.items() if place < length)

    def row(self, place: int, /) -> dict[str, Any]:
        """A row by column; what is on a device stays there."""
        with self.lock:
            chunk, within = divmod(place, _PACK)
            if chunk == len(self._chunks):
                return self._last[within]
            return {
                name: _cell(cells, within)
                for name, cells in self._chunks[chunk].items()
                if not (isinstance(cells, list) and cells[within] is ABSENT)
            }

    def column(self, name: str, length: int, /) -> list[Any]:
        """The cells of a column in the first rows; what was on a device stays in main memory from now on."""
        with self.lock:
            found: list[Any] = []
            for chunk in self._chunks[: -(-length // _PACK)]:
                cells = chunk.get(name)
                if cells is None:
                    found += [ABSENT] * _PACK
                    continue
                numbers = unpacked(cells)
                if _waits(cells):
                    chunk[name] = packed(numbers)
                found += numbers
            if len(found) < length:
                self._read_last(name)
                found += [row.get(name, ABSENT) for row in self._last[: length - len(found)]]
            return found[:length]

    def _read_last(self, name: str) -> None:
        """Read a column's tensors in the last rows at once, and keep numbers in their place."""
        waiting = [row for row in self._last if isinstance(row.get(name), Tensor)]
        for row, number in zip(waiting, unpacked([row[name] for row in waiting]), strict=True):
            row[name] = number


def _waits(cells: Cells) -> bool:
    """Whether some of it is to be read from a device."""
    if isinstance(cells, list):
        return any(isinstance(cell, Tensor) for cell in cells)
    return isinstance(cells, Tensor)


def _cell(cells: Cells, place: int) -> Any:
    cell = cells[place]
    return cell.item() if isinstance(cell, np.generic) else cell
