"""A log for TensorBoard, by torch's own writer of event files."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from fluxlike.learning.logs.histogram import histogram
from fluxlike.learning.logs.opened import OpenedLog
from fluxlike.learning.logs.pictures import figure_pixels, pixels
from fluxlike.learning.logs.protocol import Kind, plain_values, require_step
from fluxlike.learning.metrics.host import Number
from fluxlike.optional import optional

__all__ = ["TensorBoardLog"]

_FLUSH_SECONDS = 5
_LONGEST_WAIT = 2.0  # seconds


class TensorBoardLog(OpenedLog):
    """All kinds of things in a folder for TensorBoard: ``tensorboard --logdir FOLDER``.

    Scalars are kept as float32, as TensorBoard does. Of entries of a histogram that are not finite their
    number is a scalar, ``name/nonfinite``. A killed process loses what it wrote in the last five seconds.

    Args:
        folder: made when it is not there. One that holds the events of another run is never written to.

    Raises:
        ImportError: tensorboard is not installed.

    Example:
        >>> import os, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = TensorBoardLog(folder)
        ...     log.scalar("loss", 0.5, 1)
        ...     log.close()
        ...     len(os.listdir(folder))
        1
    """

    keeps: frozenset[Kind] = frozenset(
        {"scalars", "histograms", "images", "figures", "text", "hyperparameters"}
    )

    def __init__(self, folder: str | os.PathLike[str], /) -> None:
        optional("tensorboard", "TensorBoardLog")
        self._torch = optional("torch.utils.tensorboard", "TensorBoardLog")
        super().__init__(folder)
        self._purge: int | None = None
        self._there: tuple[int, set[str]] = (-1, set())  # after a rewind
        self._rewound: int | None = None

    def histogram(self, name: str, values: Tensor, step: int, /) -> None:
        found, writer = histogram(values), self._at(step)
        if found.nonfinite:
            self._write_scalars({f"{name}/nonfinite": found.nonfinite}, step)
        if not found.counts or self._is_there(name, step):
            return
        writer.add_histogram_raw(
            name,
            min=found.edges[0],
            max=found.edges[-1],
            num=sum(found.counts),
            sum=found.total,
            sum_squares=found.squares,
            bucket_limits=found.edges[1:],
            bucket_counts=found.counts,
            global_step=step,
        )

    def image(self, name: str, image: Tensor, step: int, /) -> None:
        self._picture(name, pixels(image), step)

    def figure(self, name: str, figure: Any, step: int, /) -> None:
        self._picture(name, figure_pixels(figure), step)

    def text(self, name: str, text: str, step: int, /) -> None:
        writer = self._at(step)
        if not self._is_there(f"{name}/text_summary", step):
            writer.add_text(name, text, step)

    def hyperparameters(self, values: Mapping[str, Any], metrics: Sequence[str] = (), /) -> None:
        summary = optional("torch.utils.tensorboard.summary", "TensorBoardLog")
        values = {name: "None" if value is None else value for name, value in plain_values(values).items()}
        for part in summary.hparams(values, dict.fromkeys(metrics, 0.0)):
            self._opened().file_writer.add_summary(part)

    def rewind(self, step: int, /) -> None:
        """Take back what was written after this step: the files say so to TensorBoard, and keep it."""
        require_step(self._place, step, None)
        if self._rewound == step:
            return
        self.close()
        events = self._events()
        self._purge = step + 1 if events else None
        self._there = step, _tags_at(step, [self._path / name for name in sorted(events)])
        self._last = min(step, self._last) if self._last is not None else None
        self._begun, self._rewound = True, step

    def flush(self) -> None:
        super().flush()
        if self._open is not None:
            self._open.flush()

    def _write_scalars(self, numbers: Mapping[str, Number], step: int) -> None:
        writer = self._opened()
        for name, number in numbers.items():
            if not self._is_there(name, step):
                writer.add_scalar(name, number, step)
        self._last = step

    def _is_there(self, tag: str, step: int) -> bool:
        return step == self._there[0] and tag in self._there[1]

    def _picture(self, name: str, picture: np.ndarray, step: int) -> None:
        optional("PIL", "a log of pictures")
        writer = self._at(step)
        if not self._is_there(name, step):
            writer.add_image(name, picture, step, dataformats="HWC")

    def _at(self, step: int) -> Any:
        self._write_waiting()
        require_step(self._place, step, self._last)
        writer = self._opened()
        self._last = step
        return writer

    def _opened(self) -> Any:
        self._rewound = None
        if self._open is None:
            events = self._events()
            if events and not self._begun:
                raise FileExistsError(
                    f"{self._place}: the events of another run are in this folder already; "
                    f"give a folder of its own, such as {self._path / 'second'}, or go on from that run's "
                    "checkpoint, which calls rewind(step)"
                )
            _wait_for_later_name(events)
            self._open = self._torch.SummaryWriter(
                str(self._path), purge_step=self._purge, flush_secs=_FLUSH_SECONDS
            )
            self._begun, self._purge = True, None
        return self._open

    def _events(self) -> list[str]:
        return [path.name for path in self._path.glob("events.out.tfevents.*")]


def _wait_for_later_name(events: list[str]) -> None:
    """Wait until a new file is read after the others: they are read by name, which begins with the second."""
    seconds = [int(part) for name in events if (part := name.split(".")[3]).isdigit()]
    ahead = max(seconds, default=0) + 1 - time.time()
    if ahead > _LONGEST_WAIT:
        warnings.warn(
            f"the last events are {ahead:.0f} seconds in the future (a clock set back?): TensorBoard "
            "reads the new ones first and may hide them",
            stacklevel=4,
        )
    elif ahead > 0:
        time.sleep(ahead)


def _tags_at(step: int, files: Sequence[Path]) -> set[str]:
    """What TensorBoard shows of a step: the tags of some files of events, in their order."""
    loaders = optional("tensorboard.backend.event_processing.event_file_loader", "TensorBoardLog")
    found: set[str] = set()
    for path in files:
        for event in loaders.LegacyEventFileLoader(str(path)).Load():
            if event.session_log.status == event.session_log.START and event.step <= step:
                found.clear()  # the run went on from before it
            elif event.step == step:
                found.update(value.tag for value in event.summary.value)
    return found
