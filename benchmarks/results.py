"""Measured rows in a JSON file, which a later run of other benchmarks adds to.

The file holds ``runs``, by the name of a benchmark the machine it ran on, and ``rows``, in the order of
measurement, each with the name of its benchmark.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

Found = dict[str, Any]


class Results:
    """The rows of one file, or of none.

    Args:
        path: the file; read if it exists. None keeps the rows in memory alone.

    Attributes:
        runs: by the name of a benchmark, the machine.
        rows: as they were measured.

    Raises:
        ValueError: the file is no result of `python -m benchmarks`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self.runs: dict[str, Found] = {}
        self.rows: list[Found] = []
        self._new: list[Found] = []
        if path is not None and path.exists():
            self.runs, self.rows = _read(path)

    def start(self, name: str, machine: Found) -> None:
        """Begin a run of a benchmark; the rows of its last run stay until others take their place."""
        self._new = []
        self.runs[name] = machine

    def add(self, name: str, row: Found) -> None:
        """Write a row, in the place of the same row of an earlier run if there is one."""
        row = {"benchmark": name, **row}
        self._new.append(row)
        places = [i for i, old in enumerate(self.rows) if _identity(old) == _identity(row)]
        if places:
            self.rows[places[0]] = row
        else:
            self.rows.append(row)
        self._write()

    def finish(self, name: str) -> None:
        """End a run: rows of the benchmark that it did not measure again are gone."""
        self.rows = [row for row in self.rows if row["benchmark"] != name] + self._new
        self._write()

    def of(self, names: tuple[str, ...] | list[str]) -> list[Found]:
        """The rows of some benchmarks."""
        return [row for row in self.rows if row["benchmark"] in names]

    def _write(self) -> None:
        if self.path is None:
            return
        text = json.dumps({"runs": self.runs, "rows": self.rows}, indent=1, ensure_ascii=False)
        beside = self.path.with_name(f"{self.path.name}.part")
        beside.write_text(text, encoding="utf-8")
        os.replace(beside, self.path)


def _identity(row: Found) -> tuple[Any, ...]:
    return tuple(row.get(part) for part in ("benchmark", "name", "peer", "threads", "size"))


def _read(path: Path) -> tuple[dict[str, Found], list[Found]]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        runs, rows = dict(found["runs"]), list(found["rows"])
        if all("benchmark" in row for row in rows):
            return runs, rows
    except (ValueError, KeyError, TypeError):
        pass
    raise ValueError(
        f"{path} is no file that python -m benchmarks --json wrote, of runs and rows; name another file"
    )
