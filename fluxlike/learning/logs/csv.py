"""A log as a CSV file: a line a step."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from fluxlike.files.durable import require_replaceable, write_whole
from fluxlike.learning.history import files
from fluxlike.learning.logs.protocol import Kind, not_kept, require_step
from fluxlike.learning.logs.waiting import Waiting
from fluxlike.learning.metrics.host import Number, Scalar, host_numbers

__all__ = ["CSVLog"]


class CSVLog:
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
        self._path = Path(path)
        self._file: BinaryIO | None = None
        self._columns: list[str] = []
        self._row: dict[str, Any] = {}  # the last one, which starts at
        self._start = 0
        self._begun = False
        self._waiting = Waiting()
        self._there: tuple[int, set[str]] = (-1, set())  # after a rewind

    def scalar(self, name: str, value: Scalar, step: int, /) -> None:
        self.scalars({name: value}, step)

    def scalars(self, values: Mapping[str, Scalar], step: int, /) -> None:
        self._write_waiting()
        self._check(values, step)
        self._write(dict(zip(values, host_numbers(list(values.values())), strict=True)), step)

    def later(self, values: Mapping[str, Scalar], step: int, /) -> None:
        self._check(values, step)
        self._opened()
        if self._waiting.add(values, step):
            self._write_waiting()

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
        require_step(f"CSVLog {self._path}", step, None)
        self.close()
        columns, rows = files.read_csv(self._path, whole=False) if self._path.exists() else ([], [])
        if columns[:1] not in ([], ["step"]) or any(type(row.get("step")) is not int for row in rows):
            raise ValueError(f"CSVLog {self._path}: the file does not begin with steps; it is no log")
        kept = [row for row in rows if row["step"] <= step]
        self._there = step, {name for row in kept if row["step"] == step for name in row}
        self._columns = columns or ["step"]
        if self._path.exists():
            write_whole(self._path, files.encoded(files.csv_lines(self._columns, kept)))
        self._row = kept[-1] if kept else {}
        self._begun = True

    def flush(self) -> None:
        self._write_waiting()

    def close(self) -> None:
        try:
            self._write_waiting()
        finally:
            file, self._file = self._file, None
            if file is not None:
                file.close()

    def _check(self, values: Mapping[str, Scalar], step: int) -> None:
        require_step(f"CSVLog {self._path}", step, self._waiting.last(self._row.get("step")))
        if "step" in values:
            raise ValueError(f"CSVLog {self._path}: a scalar can't have the name 'step', which a column has")

    def _write_waiting(self) -> None:
        for step, numbers in self._waiting.take():
            self._write(numbers, step)

    def _write(self, numbers: dict[str, Number], step: int) -> None:
        if step == self._there[0]:
            numbers = {name: number for name, number in numbers.items() if name not in self._there[1]}
        if not numbers:
            return
        self._opened()
        self._add_columns([name for name in numbers if name not in self._columns])
        file = self._opened()
        if self._row.get("step") == step and not self._row.keys() & numbers.keys():
            self._row |= numbers
            file.seek(self._start)
        else:
            self._row = {"step": step, **numbers}
            self._start = file.seek(0, os.SEEK_END)
        file.write(files.csv_line(self._columns, self._row).encode())
        file.flush()

    def _opened(self) -> BinaryIO:
        if self._file is None:
            require_new(self, self._path, self._begun)
            if not self._path.exists() or not self._path.stat().st_size:
                self._columns = ["step"]
                write_whole(self._path, files.encoded([files.csv_header(self._columns)]))
            self._open_at_end()
            self._begun = True
        assert self._file is not None
        return self._file

    def _open_at_end(self) -> None:
        """Open the file, and know where its last line begins."""
        self._file = open(self._path, "r+b")  # noqa: SIM115
        end = self._file.seek(0, os.SEEK_END)
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


def require_new(log: Any, path: Path, begun: bool, /) -> None:
    """Refuse to write into the file of another run, or into what is no file.

    Raises:
        FileExistsError: there is something in it.
        ValueError: it is a pipe, a device or a folder.
    """
    require_replaceable(path)
    if not begun and path.exists() and path.stat().st_size:
        raise FileExistsError(
            f"{type(log).__name__} {path}: another run is in this file already; give another path, remove "
            "the file, or go on from that run's checkpoint, which calls rewind(step)"
        )
