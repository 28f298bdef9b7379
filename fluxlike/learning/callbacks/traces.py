"""`Traces`: a few steps as torch's profiler sees them, in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fluxlike.learning.callback import Callback

__all__ = ["Traces"]


@dataclass(frozen=True)
class Traces(Callback):
    """Write a trace of a few steps of training: every operation, on the host and on CUDA.

    The file, such as ``steps-10-to-14.json``, opens in ``chrome://tracing`` or https://ui.perfetto.dev.
    It appears whole or not at all. Where a fit ends or an epoch of another phase comes in between, that is
    in it; what was recorded till an error or the end of the fit is written.

    Args:
        folder: where to write; it is made if need be.
        steps: the first step, which count from 0 over the whole training, and the one before which to
            stop. (default: ``(10, 15)``, when what happens once is over)

    Raises:
        ValueError: no such range.
        OSError: the file can't be written.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> from pathlib import Path
        >>> from fluxlike.learning.callbacks.traces import Traces
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     options = {"callbacks": [Traces(folder, steps=(2, 4))], "progress": False}
        ...     learner = fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options)
        ...     learner = fl.fit(learner, 1)
        ...     print([file.name for file in Path(folder).iterdir()])
        ['steps-2-to-3.json']
    """

    folder: str | os.PathLike[str]
    steps: tuple[int, int] = (10, 15)
    of_first_rank = True

    def __post_init__(self) -> None:
        start, stop = self.steps
        if not 0 <= start < stop:
            raise ValueError(
                f"Traces has steps={self.steps!r}; write the first step and the end, such as (10, 15)"
            )

    def step_begin(self, run: Any) -> None:
        start, stop = self.steps
        if run.trains and start <= run.step < stop and "profile" not in run.live:
            activities = [ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(ProfilerActivity.CUDA)
            run.live["first"] = run.step
            run.live["profile"] = profile(activities=activities)
            run.live["profile"].start()

    def step_end(self, run: Any) -> None:
        if run.trains and run.step >= self.steps[1]:
            self._write(run)

    def fit_end(self, run: Any) -> None:
        self._write(run)

    def exception(self, run: Any) -> None:
        self._write(run)

    def _write(self, run: Any) -> None:
        running = run.live.pop("profile", None)
        if running is None:
            return
        running.stop()
        folder = Path(self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"steps-{run.live['first']}-to-{max(run.step - 1, run.live['first'])}.json"
        part = folder / f".{file.name}.{os.getpid()}.part.json"
        try:
            running.export_chrome_trace(str(part))
            part.replace(file)
        finally:
            part.unlink(missing_ok=True)
