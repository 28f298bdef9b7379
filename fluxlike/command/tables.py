"""CSV files as a model of `train` gets them."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fluxlike.command.config import Csv
from fluxlike.data.readers.csv_table import CSVTable, listed, read_csv
from fluxlike.files.opening import open_regular
from fluxlike.files.printing import shown

__all__ = ["Rows", "read_features", "read_rows"]

_EXACT = 2**24  # whole numbers up to it are told apart in float32


@dataclass(frozen=True)
class Rows:
    """The rows of a table.

    Attributes:
        data: features, float32 of shape (N, C), and targets: class numbers, int64 of shape (N,), or values,
            float32 of shape (N, 1).
        columns: the names of the C features.
        classes: the names of the classes; None for values.
    """

    data: tuple[Tensor, Tensor]
    columns: tuple[str, ...]
    classes: tuple[str, ...] | None


def read_rows(data: Csv, /, like: Rows | None = None) -> Rows:
    """The table of a configuration; or that of its validation, with the columns and classes of `like`.

    Raises:
        ValueError: a column that is not there, a cell that is no number, a target of another kind.
    """
    path = data.path if like is None else Path(data.validation)  # type: ignore[arg-type]
    columns = _columns(path, data) if like is None else like.columns
    _require_columns(path, columns, data.delimiter)
    table = _table(path, columns, data)
    if data.task == "regression":
        return Rows((table.features, _values(path, table)), columns, None)
    known = None if like is None else like.classes
    labels, classes = _classes(path, table, known)
    return Rows((table.features, labels), columns, classes)


def read_features(path: str | os.PathLike[str], columns: tuple[str, ...], delimiter: str, /) -> Tensor:
    """The columns that a model gets, float32 of shape (N, C); others may be there too.

    Raises:
        ValueError: a column is missing, or a cell is no number.
    """
    _require_columns(path, columns, delimiter)
    return read_csv(path, features=columns, separator=delimiter).features


def _table(path: Path, columns: tuple[str, ...], data: Csv) -> CSVTable:
    try:
        return read_csv(path, data.target, features=columns, separator=data.delimiter)
    except ValueError as error:
        hint = "; in a configuration, [data] leave_out names columns that are not for it"
        raise ValueError(f"{error}{hint if 'features=[' in str(error) else ''}") from None


def _columns(path: Path, data: Csv) -> tuple[str, ...]:
    """The columns to predict from."""
    names = _header(path, data.delimiter)
    for key, wanted in (("target", data.target), *(("leave_out", name) for name in data.leave_out)):
        if wanted not in names:
            raise ValueError(
                f"[data] {key}: {path} has no column {wanted!r}; it has {listed(names)}"
                f"{_hint(names, data.delimiter, 'write another [data] delimiter')}"
            )
    columns = tuple(name for name in names if name != data.target and name not in data.leave_out)
    if not columns:
        raise ValueError(f"{path} has no column to predict from, besides the target and those left out")
    return columns


def _require_columns(path: str | os.PathLike[str], columns: tuple[str, ...], delimiter: str) -> None:
    names = _header(path, delimiter)
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(
            f"{path} lacks {listed(missing)} of the columns that the model is trained on, "
            f"{listed(columns)}; it has {listed(names)}"
            f"{_hint(names, delimiter, 'as in the table of the training')}"
        )


def _hint(names: list[str], delimiter: str, more: str) -> str:
    """What to say where a whole row was taken for one name."""
    return f", if {delimiter!r} stands between its cells; {more}" if len(names) == 1 else ""


def _header(path: str | os.PathLike[str], delimiter: str) -> list[str]:
    """The names in the first row; what else is wrong with it `read_csv` says."""
    with io.TextIOWrapper(io.BufferedReader(open_regular(path)), "utf-8-sig", "replace", newline="") as text:
        try:
            return [name.strip() for name in next(csv.reader(text, delimiter=delimiter), [])]
        except csv.Error as error:
            raise ValueError(f"{path}, line 1, is no CSV: {error}") from None


def _values(path: Path, table: CSVTable) -> Tensor:
    if table.targets is None or table.classes is not None:
        found = shown((table.classes or ("",))[0])
        raise ValueError(
            f'[data] task is "regression", and the column {table.target!r} of {path} holds text, such as '
            f'{found}; write task = "classification"'
        )
    return table.targets


def _classes(path: Path, table: CSVTable, known: tuple[str, ...] | None) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers, and the names of the classes, which may be whole numbers."""
    targets = table.targets
    if targets is None or table.classes is not None:
        found, names = targets, table.classes or ()
    else:
        _require_whole(path, table, targets)
        values, found = targets[:, 0].unique(return_inverse=True)
        names = tuple(str(int(value)) for value in values.tolist())
    if known is None or found is None:
        return found, names  # type: ignore[return-value]
    stray = [name for name in names if name not in known]
    if stray:
        raise ValueError(
            f"the column {table.target!r} of {path} holds {shown(stray[0])}, which is none of the classes "
            f"that the model is trained on, {listed(known)}"
        )
    places = torch.tensor([known.index(name) for name in names])
    return places[found], known


def _require_whole(path: Path, table: CSVTable, targets: Tensor) -> None:
    wrong = (targets != targets.round()) | (targets.abs() > _EXACT)
    if bool(wrong.any()):
        raise ValueError(
            f'[data] task is "classification", and the column {table.target!r} of {path} holds '
            f'{targets[wrong][0].item():g}, no number of a class; for values write task = "regression"'
        )
