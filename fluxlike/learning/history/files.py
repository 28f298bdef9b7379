"""Tables in files: CSV whose strings are in quotes, and JSON lines."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from fluxlike.files.opening import open_regular
from fluxlike.files.strict_json import unique_keys

__all__ = [
    "csv_header",
    "csv_line",
    "csv_lines",
    "encoded",
    "json_line",
    "read_csv",
    "read_jsonl",
]

_FIELD = re.compile(r'("(?:[^"]|"")*"|[^",\r\n]*)(,|\r?\n)')
_PLAIN_NAME = re.compile(r"[\w ./-]+")
_WHOLE = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"-?([0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?|inf)|nan")
_TOGETHER = 4096  # lines
_OTHERWISE = "write it as a float or a string"


def encoded(lines: Iterable[str], /) -> Iterator[bytes]:
    """Lines as bytes, many at a time."""
    waiting = iter(lines)
    while part := "".join(itertools.islice(waiting, _TOGETHER)):
        yield part.encode()


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], /) -> Iterator[str]:
    """The lines of a CSV file."""
    yield csv_header(columns)
    for row in rows:
        yield csv_line(columns, row)


def csv_header(columns: Iterable[str], /) -> str:
    """The names of the columns as a line.

    Raises:
        ValueError: a name holds half a character.
    """
    return ",".join(name if _PLAIN_NAME.fullmatch(name) else _quoted(name, name) for name in columns) + "\n"


def csv_line(columns: Iterable[str], row: Mapping[str, Any], /) -> str:
    """A row as a line.

    Raises:
        ValueError: a cell can't be written: a whole number of thousands of digits, or half a character.
    """
    return ",".join(_csv_cell(name, row[name]) if name in row else "" for name in columns) + "\n"


def json_line(row: Mapping[str, Any], /) -> str:
    """A row as a line.

    Raises:
        ValueError: a cell can't be written: a whole number of thousands of digits.
    """
    try:
        line = json.dumps(row, ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"a line of JSON can't hold a cell of {list(row)}: {error}; {_OTHERWISE}") from None
    return (line if _is_text(line) else json.dumps(row)) + "\n"


def read_csv(
    path: str | os.PathLike[str], /, *, whole: bool = True
) -> tuple[list[str], list[dict[str, Any]]]:
    """The columns and rows of a CSV file.

    Args:
        path: the file.
        whole: whether a last line that was cut off is an error; else it is left out. (default: True)

    Raises:
        ValueError: it is no CSV file as they are written here.
    """
    lines = list(_csv_fields(path, _text(path, whole)))
    if not lines:
        return [], []
    names = [_unquoted(field) for field in lines[0]]
    if len(set(names)) < len(names):
        raise ValueError(f"{path}: a column stands there twice, {names}")
    rows = []
    for number, fields in enumerate(lines[1:], 2):
        if len(fields) != len(names):
            raise ValueError(f"{path}, record {number}: {len(fields)} fields for {len(names)} columns")
        cells = zip(names, fields, strict=True)
        rows.append({name: _read_cell(path, number, field) for name, field in cells if field})
    return names, rows


def read_jsonl(path: str | os.PathLike[str], /, *, whole: bool = True) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines.

    Args:
        path: the file.
        whole: as in `read_csv`. (default: True)

    Raises:
        ValueError: a line is no JSON object.
    """
    rows = []
    for number, line in enumerate(_text(path, whole).split("\n")[:-1], 1):
        try:
            row = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: its JSON is a {type(row).__name__}, no object")
        rows.append(row)
    return rows


def _text(path: Any, whole: bool) -> str:
    """What a file says, or its whole lines."""
    with open_regular(path) as file:
        data = file.readall()
    end = data.rfind(b"\n") + 1
    if whole and end < len(data):
        raise ValueError(f"{path}: the last line was cut off")
    try:
        return data[:end].decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: it is no text in UTF-8: {error}") from None


def _csv_fields(path: Any, text: str) -> Iterator[list[str]]:
    """The fields of every record as they stand there, quotes and all."""
    place, fields = 0, list[str]()
    while place < len(text):
        match = _FIELD.match(text, place)
        if match is None:
            raise ValueError(f"{path}: no CSV at {text[place : place + 30]!r}")
        fields.append(match[1])
        place = match.end()
        if match[2] != ",":
            yield fields
            fields = []


def _csv_cell(name: str, cell: Any) -> str:
    if isinstance(cell, str):
        return _quoted(cell, name)
    try:
        return repr(cell)
    except ValueError as error:
        raise ValueError(f"a CSV file can't hold a cell of {name!r}: {error}; {_OTHERWISE}") from None


def _is_text(line: str) -> bool:
    """Whether UTF-8 has every character: it lacks halves of a pair of UTF-16."""
    try:
        line.encode()
    except UnicodeEncodeError:
        return False
    return True


def _quoted(text: str, column: str) -> str:
    if not _is_text(text):
        raise ValueError(
            f"a CSV file can't hold {text!r}, of the column {column!r}: UTF-8 has no half of a character; "
            "write another string, or JSON lines"
        )
    return '"' + text.replace('"', '""') + '"'


def _unquoted(field: str) -> str:
    return field[1:-1].replace('""', '"') if field.startswith('"') else field


def _read_cell(path: Any, number: int, field: str) -> Any:
    if field.startswith('"'):
        return _unquoted(field)
    if field in ("True", "False"):
        return field == "True"
    if _WHOLE.fullmatch(field):
        try:
            return int(field)
        except ValueError as error:
            raise ValueError(f"{path}, record {number}: {error}") from None
    if _FLOAT.fullmatch(field):
        return float(field)
    raise ValueError(f"{path}, record {number}: {field!r} is no number, and strings stand in quotes")
