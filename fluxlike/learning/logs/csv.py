"""A log as a CSV file: a line a step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, NoReturn

from fluxlike.files.durable import write_whole
from fluxlike.learning.history import files
from fluxlike.learning.logs.opened import OpenedLog
from fluxlike.learning.logs.protocol import Kind, not_kept, require_new, require_step
from fluxlike.learning.metrics.host import Number, Scalar

__all__ = ["CSVLog"]


class CSVLog(OpenedLog):
    """Scalars by step in a CSV file: a column for ``step`` and one for each name, empty where not written.

    What is written at one step is one line. Every line is in the hands of the system once it is written, so a
    killed process loses none. A new name means a new file with one column more, in the place of the old.

    Args:
        path: the file; its folder must be there. One that holds another run is never written to.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = CSVLog(f"{folder}/run.csv")
        ...     log.scalars({"loss": 0.5, "accuracy": 0.75}, 1)
        ...     log.close()
        ...     print(Path(f"{folder}/run.csv").read_text(), end="")
        step,loss,accuracy
        1,0.5,0.75
    """

    keeps: frozenset[Kind] = frozenset({"scalars"})

    def __init__(self, path: str | os.PathLike[str], /) -> None:
        super().__init__(path)
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}  # the last one, which starts at
        self._start = 0
        self._there: tuple[int, set[str]] = (-1, set())  # after a rewind

    def histogram(self, name: str, values: Any, step: int, /) -> NoReturn:
        not_kept(self, "histograms")

    def image(self, name: str, image: Any, step: int, /) -> NoReturn:
        not_kept(self, "images")

    def figure(self, name: str, figure: Any, step: int, /) -> NoReturn:
        not_kept(self, "figures")

    def text(self, name: str, text: str, step: int, /) -> NoReturn:
        not_kept(self, "text")

    def hyperparameters(self, values: Mapping[str, Any], metrics: Sequence[str] = (), /) -> NoReturn:
        not_kept(self, "hyperparameters")

    def rewind(self, step: int, /) -> None:
        """Take back the lines after this step, and one that was cut off; what is there before stays.

        Raises:
            ValueError: the file is no log of this kind; it is left as it is.
        """
        require_step(self._place, step, None)
        self.close()
        columns, rows = files.read_csv(self._path, whole=False) if self._path.exists() else ([], [])
        if columns[:1] not in ([], ["step"]) or any(type(row.get("step")) is not int for row in rows):
            raise ValueError(f"{self._place}: the file does not begin with steps; it is no log")
        kept = [row for row in rows if row["step"] <= step]
        self._there = step, {name for row in kept if row["step"] == step for name in row}
        self._columns = columns or ["step"]
        if self._path.exists():
            write_whole(self._path, files.encoded(files.csv_lines(self._columns, kept)))
        self._row = kept[-1] if kept else {}
        self._last = self._row.get("step")
        self._begun = True

    def _require(self, values: Mapping[str, Scalar], step: int, last: int | None) -> None:
        super()._require(values, step, last)
        if "step" in values:
            raise ValueError(f"{self._place}: a scalar can't have the name 'step', which a column has")

    def _write_scalars(self, numbers: Mapping[str, Number], step: int) -> None:
        if step == self._there[0]:
            numbers = {name: number for name, number in numbers.items() if name not in self._there[1]}
        if not numbers:
            return
        self._opened()
        self._add_columns([name for name in numbers if name not in self._columns])
        file = self._opened()
        if self._row.get("step") == step and not self._row.keys() & numbers.keys():
            self._row = {**self._row, **numbers}
            file.seek(self._start)
        else:
            self._row = {"step": step, **numbers}
            self._start = file.seek(0, os.SEEK_END)
        self._last = step
        file.write(files.csv_line(self._columns, self._row).encode())
        file.flush()

    def _opened(self) -> BinaryIO:
        if self._open is None:
            require_new(self._place, self._path, self._begun)
            if not self._path.exists() or not self._path.stat().st_size:
                self._columns = ["step"]
                write_whole(self._path, files.encoded([files.csv_header(self._columns)]))
            self._open_at_end()
            self._begun = True
        return self._open

    def _open_at_end(self) -> None:
        """Open the file, and know where its last line begins."""
        self._open = open(self._path, "r+b")  # noqa: SIM115
        end = self._open.seek(0, os.SEEK_END)
        line = files.csv_line(self._columns, self._row) if self._row else ""
        self._start = end - len(line.encode())

    def _add_columns(self, names: list[str]) -> None:
        if not names:
            return
        self.close()
        _, rows = files.read_csv(self._path)
        self._columns += names
        write_whole(self._path, files.encoded(files.csv_lines(self._columns, rows)))
        self._open_at_end()
