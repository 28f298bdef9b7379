"""A table of rows that grows by a row at nearly no cost, and never changes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.files.durable import write_whole
from fluxlike.files.printing import shown
from fluxlike.learning.history import files
from fluxlike.learning.history.packed import ABSENT, column_from, column_state, unpacked
from fluxlike.learning.history.shared_rows import SharedRows
from fluxlike.learning.history.show import counted, table_html, table_text
from fluxlike.optional import optional

__all__ = ["Table"]

_PLAIN = (float, int, str, bool)


class Table:
    """Rows by number, each a dict from column to number or string; rows may have different columns.

    A table never changes: `append` gives a new one, which shares what it can. A 0-d tensor in a row stays on
    its device until somebody looks: then its column is read at once.

    Args:
        rows: the rows to begin with. (default: none)

    Example:
        >>> import torch
        >>> from fluxlike.learning.history.table import Table
        >>> table = Table().append({"step": 1, "loss": torch.tensor(0.5)})
        >>> table = table.append({"step": 2, "loss": 0.25, "note": "slow"})
        >>> table["loss"]
        [0.5, 0.25]
        >>> table[-1]
        {'step': 2, 'loss': 0.25, 'note': 'slow'}
        >>> table["note"]
        [None, 'slow']
    """

    __slots__ = ("_length", "_store")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, rows: Any = ()) -> None:
        self._store, self._length = SharedRows(), 0
        for row in rows:
            self._length = self._store.add(_checked(row), self._length)

    def append(self, row: Mapping[str, Any], /) -> Table:
        """A table with one row more.

        Args:
            row: numbers, strings and 0-d tensors by column, with what is not known left out. Tensors are
                kept, so not to be written into.

        Raises:
            TypeError: a cell is anything else.
            ValueError: a tensor has more numbers than one.
        """
        return self.extend([row])

    def extend(self, rows: Iterable[Mapping[str, Any]], /) -> Table:
        """A table with several rows more, each as for `append`."""
        checked = [_checked(row) for row in rows]
        table = Table.__new__(Table)
        store = self._store
        with store.lock:
            table._store = store if store.length == self._length else store.first(self._length)
            table._length = self._length
            for row in checked:
                table._length = table._store.add(row, table._length)
        return table

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns, in the order in which they appeared."""
        return self._store.names(self._length)

    def where(self, **equal: Any) -> Table:
        """The rows that have these values: ``table.where(phase="training")``."""
        return Table(row for row in self if all(row.get(name, ABSENT) == v for name, v in equal.items()))

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[dict[str, Any]]:
        columns = {name: self._cells(name) for name in self.columns}
        for place in range(self._length):
            yield {name: cells[place] for name, cells in columns.items() if cells[place] is not ABSENT}

    def __getitem__(self, key: str | int, /) -> Any:
        """A column by name, with None where a row does not have it; or a row by number."""
        if isinstance(key, str):
            if key not in self.columns:
                raise KeyError(f"there is no column {key!r} among {list(self.columns)}")
            return [None if cell is ABSENT else cell for cell in self._cells(key)]
        if not isinstance(key, int):
            raise TypeError(
                f"a table has columns by name and rows by number, found {key!r}; some of its rows are "
                "Table(list(table)[1:3])"
            )
        if not -self._length <= key < self._length:
            raise IndexError(f"row {key} of a table of {self._length}")
        place = key % self._length
        row = self._store.row(place)
        return dict(zip(row, unpacked(list(row.values())), strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Table):
            return NotImplemented
        return len(self) == len(other) and all(map(_same_row, self, other))

    def __repr__(self) -> str:
        return table_text(self, f"Table({counted(len(self), 'row')})")

    def _repr_html_(self) -> str:
        return table_html(self, f"Table: {counted(len(self), 'row')}")

    def __reduce__(self) -> tuple[Any, ...]:
        return Table.restore, (self.state(),)

    def state(self) -> dict[str, Any]:
        """All of it as tensors in main memory and plain values."""
        columns = [{"name": name, **column_state(self._cells(name))} for name in self.columns]
        return {"length": self._length, "columns": columns}

    @classmethod
    def restore(cls, state: Mapping[str, Any], /) -> Table:
        """The table that gave this state."""
        length = state["length"]
        columns = {column["name"]: column_from(column, length) for column in state["columns"]}
        return cls(
            {name: cells[place] for name, cells in columns.items() if cells[place] is not ABSENT}
            for place in range(length)
        )

    def to_csv(self, path: str | os.PathLike[str], /) -> None:
        """Write a CSV file: a line a row, every string in quotes, and nothing for what a row does not have.

        The file is there as a whole or not at all. `from_csv` reads the same table back, to the bit.

        Raises:
            ValueError: a pipe, a device or a folder is at the path; or a string holds half a
                character, or a whole number has thousands of digits.
            OSError: it can't be written.
        """
        write_whole(path, files.encoded(files.csv_lines(self.columns, self)))

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str], /) -> Table:
        """The table that `to_csv` wrote.

        Raises:
            ValueError: it is no such file.
        """
        return cls(files.read_csv(path)[1])

    def to_jsonl(self, path: str | os.PathLike[str], /) -> None:
        """Write JSON lines: an object a row. NaN and infinities are as Python writes them, beyond JSON.

        The file is there as a whole or not at all. `from_jsonl` reads the same table back, to the bit.

        Raises:
            ValueError: a pipe, a device or a folder is at the path; or a whole number has thousands of
                digits.
            OSError: it can't be written.
        """
        write_whole(path, files.encoded(map(files.json_line, self)))

    @classmethod
    def from_jsonl(cls, path: str | os.PathLike[str], /) -> Table:
        """The table that `to_jsonl` wrote.

        Raises:
            ValueError: it is no such file.
        """
        rows = files.read_jsonl(path)
        for number, row in enumerate(rows, 1):
            for name, cell in row.items():
                if type(cell) not in _PLAIN:
                    raise ValueError(
                        f"{path}, line {number}: the column {name!r} has {shown(cell)}; a cell is a "
                        "number or a string, and what is not known is left out"
                    )
        return cls(rows)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with these rows and columns.

        Raises:
            ImportError: pandas is not installed.
        """
        pandas = optional("pandas", "to_pandas", install="pandas")
        return pandas.DataFrame({name: self[name] for name in self.columns})

    def _cells(self, name: str) -> list[Any]:
        return self._store.column(name, self._length)


def _checked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a row whose cells may be kept."""
    found = dict(row)
    for name, cell in row.items():
        if type(name) is not str:
            raise TypeError(f"a column has a name, found {name!r}")
        if type(cell) not in _PLAIN:
            found[name] = _kept(name, cell)
    return found


def _kept(name: str, cell: Any) -> Any:
    if isinstance(cell, np.generic):
        cell = cell.item()
    for plain in _PLAIN[::-1]:
        if isinstance(cell, plain):
            return plain(cell)
    if not isinstance(cell, Tensor):
        raise TypeError(
            f"the column {name!r} has a {type(cell).__name__}; write a number, a string or a 0-d tensor, and "
            "leave out what is not known"
        )
    if cell.ndim or cell.is_complex():
        raise ValueError(
            f"the column {name!r} has a tensor of shape {tuple(cell.shape)} and {cell.dtype}; a cell is one "
            "real number"
        )
    return cell.detach() if cell.requires_grad else cell


def _same_row(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(_same(cell, b[name]) for name, cell in a.items())


def _same(a: Any, b: Any) -> bool:
    both = type(a) is type(b)
    return both and (a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)))
