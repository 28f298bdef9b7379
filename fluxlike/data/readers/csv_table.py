"""Tables of numbers and classes in CSV files."""

from __future__ import annotations

import csv
import io
import math
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.files.opening import open_regular
from fluxlike.files.printing import shown

__all__ = ["CSVTable", "listed", "read_csv"]

_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
_FEW = 20
_LARGEST = float(np.finfo(np.float32).max)


@dataclass(frozen=True, eq=False)
class CSVTable:
    """What `read_csv` found in a file.

    Attributes:
        features: float32, of shape (N, C).
        targets: class numbers in int64, of shape (N,); or numbers in float32, of shape (N, 1); or None where
            no target was asked for.
        columns: the names of the C features.
        target: the name of the target, or None.
        classes: the names of the classes, in the order of their numbers; None where targets are no classes.

    Example:
        >>> import torch, fluxlike as fl
        >>> prices = torch.tensor([[3.5], [2.0]])
        >>> named = {"columns": ("size",), "target": "price", "classes": None}
        >>> table = fl.data.CSVTable(torch.ones(2, 1), prices, **named)
        >>> table
        CSVTable(2 rows, 1 features, target='price')
        >>> [x.shape for x, y in fl.DataLoader(table.data, batch_size=2)]
        [torch.Size([2, 1])]
    """

    features: Tensor
    targets: Tensor | None
    columns: tuple[str, ...]
    target: str | None
    classes: tuple[str, ...] | None

    @property
    def data(self) -> Any:
        """``(features, targets)``, what a DataLoader takes; or the features alone, without a target."""
        return self.features if self.targets is None else (self.features, self.targets)

    def __repr__(self) -> str:
        n, c = self.features.shape
        kind = "" if self.target is None else f", target={self.target!r}"
        classes = "" if self.classes is None else f" of {len(self.classes)} classes"
        return f"CSVTable({n} rows, {c} features{kind}{classes})"


def read_csv(
    path: str | os.PathLike[str],
    /,
    target: str | None = None,
    *,
    features: Sequence[str] | None = None,
    classes: Iterable[Any] | None = None,
    separator: str = ",",
) -> CSVTable:
    """Features and targets from a CSV file, whose first row names the columns.

    A target of text is a class, and is numbered by the sorted names; a target of numbers stays one. To
    number a second file as the first, or to take numbers as classes, give `classes`.

    Args:
        path: a file in UTF-8, with or without a byte order mark.
        target: the column of the targets. (default: None)
        features: the columns of the features, in this order, all of numbers. (default: all but `target`)
        classes: the values of the target, in the order of their numbers, compared as text. (default: the
            sorted texts in the file, or none if they are numbers)
        separator: what stands between cells, such as ``";"`` or a tab. (default: ``","``)

    Returns:
        A `CSVTable`, with ``features``, ``targets``, ``columns`` and ``classes``, and the first two as
        ``data``.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a cell is missing or no number, with its line and column; a row is too short or too
            long; a column is not there or there twice; a target is outside `classes`, or numbers and text
            at once; or the file is no text in UTF-8.

    Example:
        >>> import os, tempfile, fluxlike as fl
        >>> file = os.path.join(tempfile.mkdtemp(), "flowers.csv")
        >>> with open(file, "w") as stream:
        ...     _ = stream.write("length,width,kind\\n5.1,3.5,setosa\\n6.3,2.8,virginica\\n")
        >>> table = fl.data.read_csv(file, target="kind")
        >>> table.columns, table.classes
        (('length', 'width'), ('setosa', 'virginica'))
        >>> table.features, table.targets
        (tensor([[5.1000, 3.5000],
                [6.3000, 2.8000]]), tensor([0, 1]))

    See RFC 4180 for quotes and line ends.
    """
    if not isinstance(separator, str) or len(separator) != 1:
        raise ValueError(f"read_csv(separator={separator!r}): write one character, such as ';'")
    wanted = None if classes is None else _named(classes, target)
    with io.BufferedReader(open_regular(path)) as stream:
        rows = _rows(path, _lines(path, stream), separator)
        names = _header(path, rows, separator)
        chosen = _chosen(path, names, target, features)
        numbers, texts, lines = _cells(path, rows, names, chosen, target)
    if not lines:
        raise ValueError(f"{path} has the names of columns, and no rows")
    values = torch.from_numpy(np.frombuffer(numbers, np.float32).reshape(len(lines), len(chosen)).copy())
    if target is None:
        return CSVTable(values, None, tuple(chosen), None, None)
    place = _Places(path, lines, target)
    if wanted is None and all(_is_number(text) for text in texts):
        regressed = [place.number(i, text) for i, text in enumerate(texts)]
        return CSVTable(
            values, torch.tensor(regressed, dtype=torch.float32)[:, None], tuple(chosen), target, None
        )
    known = place.classes(texts) if wanted is None else wanted
    return CSVTable(values, place.numbered(texts, known), tuple(chosen), target, known)


def listed(names: Sequence[str], /) -> str:
    """The first names of columns or classes, in print."""
    return ", ".join(map(shown, names[:_FEW])) + (", …" if len(names) > _FEW else "")


def _lines(path: object, stream: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}, line {number}, is no text in UTF-8 ({error.reason}); save it as UTF-8"
            ) from None


def _rows(path: object, lines: Iterator[str], separator: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a file, with the number of the line on which each ends."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    try:
        for row in reader:
            yield reader.line_num, row
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}, is no CSV: {error}") from None


def _header(path: object, rows: Iterator[tuple[int, list[str]]], separator: str) -> list[str]:
    names = [name.strip() for name in next(rows, (0, []))[1]]
    if not names:
        raise ValueError(f"{path} is empty, or starts with a blank line; its first row names the columns")
    if all(_is_number(name) for name in names):
        raise ValueError(
            f"{path} starts with the numbers {shown(names[0])}, …; write a first row that names the columns"
        )
    for i, name in enumerate(names):
        if not name:
            raise ValueError(
                f"{path}: column {i + 1} of {len(names)} has no name; name it in the first row (pandas "
                "writes its index so; write to_csv(…, index=False))"
            )
        if names.index(name) != i:
            raise ValueError(
                f"{path}: columns {names.index(name) + 1} and {i + 1} are both called {shown(name)}"
            )
    other = next((s for s in ";\t|," if s != separator and s in names[0]), None)
    if len(names) == 1 and other:
        raise ValueError(
            f"{path} has one column, {shown(names[0])}, if {separator!r} stands between its cells; write "
            f"separator={other!r}"
        )
    return names


def _chosen(path: object, names: list[str], target: str | None, features: Sequence[str] | None) -> list[str]:
    """The columns of the features."""
    if isinstance(features, str):
        raise TypeError(f"read_csv(features={features!r}): write a list of names, such as [{features!r}]")
    chosen = [name for name in names if name != target] if features is None else list(features)
    for name in [*chosen, *([] if target is None else [target])]:
        if name not in names:
            raise ValueError(f"{path} has no column {name!r}; it has {listed(names)}")
    if target in chosen:
        raise ValueError(f"read_csv: {target!r} is the target and one of the features; leave it out of these")
    if not chosen:
        raise ValueError(f"{path} has no columns for features beside the target {target!r}")
    if len(set(chosen)) != len(chosen):
        raise ValueError(f"read_csv(features={chosen!r}): a column is there twice")
    return chosen


def _cells(
    path: object,
    rows: Iterator[tuple[int, list[str]]],
    names: list[str],
    chosen: list[str],
    target: str | None,
) -> tuple[array[float], list[str], array[int]]:
    """The numbers of the features, row by row; the texts of the target; and the lines of the rows."""
    numbers, texts, lines = array("f"), list[str](), array("q")
    places = [names.index(name) for name in chosen]
    at = None if target is None else names.index(target)
    blank = 0
    for line, row in rows:
        if not row:
            blank = blank or line
            continue
        if blank:
            raise ValueError(f"{path}, line {blank}, is blank, and rows follow; delete it, or fill it in")
        if len(row) != len(names):
            raise ValueError(f"{path}, line {line}, has {len(row)} cells for {len(names)} columns")
        lines.append(line)
        for place in places:
            numbers.append(_number(path, line, names[place], row[place]))
        if at is not None:
            texts.append(row[at].strip())
    return numbers, texts, lines


def _number(path: object, line: int, column: str, text: str) -> float:
    """The number in a cell."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if abs(value) <= _LARGEST and "_" not in text:
        return value
    where = f"{path}, line {line}, column {shown(column)}:"
    if text.strip().lower() in _MISSING:
        raise ValueError(
            f"{where} the cell is missing, found {shown(text)}; fill it in, leave out the row, or name the "
            "other columns, features=[…]"
        )
    if abs(value) > _LARGEST:
        raise ValueError(f"{where} {shown(text)} is beyond float32, whose largest number is {_LARGEST:.3g}")
    raise ValueError(
        f"{where} {shown(text)} is no number; write it as one, or name the columns that are, features=[…]"
    )


def _is_number(text: str) -> bool:
    try:
        return "_" not in text and not math.isnan(float(text))
    except ValueError:
        return False


def _named(classes: Iterable[Any], target: str | None) -> tuple[str, ...]:
    """The classes that a user gives, as text."""
    if isinstance(classes, (str, int)):
        raise TypeError(f"read_csv(classes={classes!r}): write the values of the target, such as range(3)")
    names = tuple(map(str, classes))
    if target is None:
        raise ValueError("read_csv got classes and no target; write target=…, the column that they are in")
    if not names or len(set(names)) != len(names):
        raise ValueError(f"read_csv(classes={names}): write each class once, and at least one")
    return names


@dataclass(frozen=True)
class _Places:
    """The cells of the target, by row."""

    path: object
    lines: Sequence[int]
    target: str

    def number(self, row: int, text: str) -> float:
        return _number(self.path, self.lines[row], self.target, text)

    def classes(self, texts: list[str]) -> tuple[str, ...]:
        """The sorted names of the classes, none of which is missing or a number."""
        for row, text in enumerate(texts):
            if text.lower() in _MISSING:
                raise ValueError(f"{self._at(row)} the target is missing, found {shown(text)}")
        first_text = next(i for i, text in enumerate(texts) if not _is_number(text))
        first_number = next((i for i, text in enumerate(texts) if _is_number(text)), None)
        if first_number is not None:
            raise ValueError(
                f"{self._at(first_text)} the target {shown(texts[first_text])} is text, and on line "
                f"{self.lines[first_number]} it is the number {shown(texts[first_number])}; correct one of "
                "them, or if they are classes, name them all, classes=[…]"
            )
        return tuple(sorted(set(texts)))

    def numbered(self, texts: list[str], classes: tuple[str, ...]) -> Tensor:
        numbers = {name: number for number, name in enumerate(classes)}
        for row, text in enumerate(texts):
            if text not in numbers:
                raise ValueError(f"{self._at(row)} {shown(text)} is none of the classes {listed(classes)}")
        return torch.tensor([numbers[text] for text in texts], dtype=torch.int64)

    def _at(self, row: int) -> str:
        return f"{self.path}, line {self.lines[row]}, column {shown(self.target)}:"
