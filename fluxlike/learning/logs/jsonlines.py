"""A log as JSON lines: an object a write."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn, TextIO

from torch import Tensor

from fluxlike.files.durable import write_whole
from fluxlike.learning.history import files
from fluxlike.learning.logs.histogram import histogram
from fluxlike.learning.logs.opened import OpenedLog
from fluxlike.learning.logs.protocol import Kind, not_kept, plain_values, require_new, require_step
from fluxlike.learning.metrics.host import Number

__all__ = ["JSONLinesLog"]


class JSONLinesLog(OpenedLog):
    """Scalars, histograms, text and hyperparameters, each write a line with a JSON object.

    A line is ``{"step": 7, "scalars": {"loss": 0.5}}``, with ``"histogram"`` (its ``name``, ``edges``,
    ``counts``, ``nonfinite``, ``total``, ``squares``), ``"text"`` (``name``, ``text``) or
    ``"hyperparameters"`` (``values``, ``metrics``, without a step) in the place of ``"scalars"``. NaN and
    infinities are as Python writes them, beyond JSON. Every line is in the hands of the system once it is
    written.

    Args:
        path: the file; its folder must be there. One that holds another run is never written to.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = JSONLinesLog(f"{folder}/run.jsonl")
        ...     log.scalar("loss", 0.5, 1)
        ...     log.close()
        ...     print(Path(f"{folder}/run.jsonl").read_text(), end="")
        {"step": 1, "scalars": {"loss": 0.5}}
    """

    keeps: frozenset[Kind] = frozenset({"scalars", "histograms", "text", "hyperparameters"})

    def __init__(self, path: str | os.PathLike[str], /) -> None:
        super().__init__(path)
        self._there: tuple[int, set[tuple[str, str]]] = (-1, set())  # after a rewind

    def histogram(self, name: str, values: Tensor, step: int, /) -> None:
        found = dataclasses.asdict(histogram(values))
        self._write_at(step, "histogram", {"name": name, **found})

    def image(self, name: str, image: Any, step: int, /) -> NoReturn:
        not_kept(self, "images")

    def figure(self, name: str, figure: Any, step: int, /) -> NoReturn:
        not_kept(self, "figures")

    def text(self, name: str, text: str, step: int, /) -> None:
        self._write_at(step, "text", {"name": name, "text": text})

    def hyperparameters(self, values: Mapping[str, Any], metrics: Sequence[str] = (), /) -> None:
        self._write_waiting()
        self._write({"hyperparameters": {"values": plain_values(values), "metrics": list(metrics)}})

    def rewind(self, step: int, /) -> None:
        """Take back the lines after this step, and one that was cut off; what is there before stays.

        Raises:
            ValueError: the file is no log of this kind; it is left as it is.
        """
        require_step(self._place, step, None)
        self.close()
        rows = files.read_jsonl(self._path, whole=False) if self._path.exists() else []
        if any(type(row.get("step", 0)) is not int for row in rows):
            raise ValueError(f"{self._place}: the file has steps that are no ints; it is no log")
        kept = [row for row in rows if row.get("step", 0) <= step]
        if self._path.exists():
            write_whole(self._path, files.encoded(map(files.json_line, kept)))
        self._there = step, {entry for row in kept if row.get("step") == step for entry in _entries(row)}
        self._last = max((row["step"] for row in kept if "step" in row), default=None)
        self._begun = True

    def _write_scalars(self, numbers: Mapping[str, Number], step: int) -> None:
        new = {name: number for name, number in numbers.items() if not self._is_there("scalars", name, step)}
        if new:
            self._write({"step": step, "scalars": new})
            self._last = step

    def _write_at(self, step: int, kind: str, entry: dict[str, Any]) -> None:
        self._write_waiting()
        require_step(self._place, step, self._last)
        if not self._is_there(kind, entry["name"], step):
            self._write({"step": step, kind: entry})
            self._last = step

    def _is_there(self, kind: str, name: str, step: int) -> bool:
        return step == self._there[0] and (kind, name) in self._there[1]

    def _write(self, row: dict[str, Any]) -> None:
        file = self._opened()
        file.write(files.json_line(row))
        file.flush()

    def _opened(self) -> TextIO:
        if self._open is None:
            require_new(self._place, self._path, self._begun)
            self._open = open(self._path, "a", encoding="utf-8", newline="")  # noqa: SIM115
            self._begun = True
        return self._open


def _entries(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The kind and the name of what a line holds."""
    for name in row.get("scalars", ()):
        yield "scalars", name
    for kind in ("histogram", "text"):
        if kind in row:
            yield kind, row[kind]["name"]
