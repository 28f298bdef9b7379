"""What logs at a path have in common: opened by the first write, with scalars that may wait."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxlike.learning.logs.protocol import require_step
from fluxlike.learning.logs.waiting import Waiting
from fluxlike.learning.metrics.host import Number, Scalar, host_numbers

__all__ = ["OpenedLog"]


class OpenedLog:
    """A log that opens its path at the first write, and again after `close`. A subclass writes.

    Args:
        path: where to write.
    """

    def __init__(self, path: str | os.PathLike[str], /) -> None:
        self._path = Path(path)
        self._open: Any = None  # what is written to, while it is open
        self._begun = False  # whether what is there is of this run
        self._last: int | None = None  # the step of the last write
        self._waiting = Waiting()

    def scalar(self, name: str, value: Scalar, step: int, /) -> None:
        self.scalars({name: value}, step)

    def scalars(self, values: Mapping[str, Scalar], step: int, /) -> None:
        self._write_waiting()
        self._require(values, step, self._last)
        self._write_scalars(dict(zip(values, host_numbers(list(values.values())), strict=True)), step)

    def later(self, values: Mapping[str, Scalar], step: int, /) -> None:
        self._require(values, step, self._waiting.last(self._last))
        self._opened()
        if self._waiting.add(values, step):
            self._write_waiting()

    def flush(self) -> None:
        self._write_waiting()

    def close(self) -> None:
        try:
            self._write_waiting()
        finally:
            opened, self._open = self._open, None
            if opened is not None:
                opened.close()

    @property
    def _place(self) -> str:
        """What it is called in errors."""
        return f"{type(self).__name__} {self._path}"

    def _require(self, values: Mapping[str, Scalar], step: int, last: int | None) -> None:
        """Refuse scalars that can't be written at a step."""
        require_step(self._place, step, last)

    def _write_waiting(self) -> None:
        for step, numbers in self._waiting.take():
            self._write_scalars(numbers, step)

    def _write_scalars(self, numbers: Mapping[str, Number], step: int) -> None:
        """Write what is not there already."""
        raise NotImplementedError

    def _opened(self) -> Any:
        """What is written to."""
        raise NotImplementedError
