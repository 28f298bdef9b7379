"""`LogMetrics`: losses, metrics and hyperparameters in logs."""

from __future__ import annotations

from typing import Any

from fluxlike.learning.callbacks.every import checked_every
from fluxlike.learning.callbacks.logging import Logging
from fluxlike.learning.callbacks.metrics import numbers_of
from fluxlike.learning.callbacks.recorder import scheduled
from fluxlike.learning.logs.protocol import Log

__all__ = ["LogMetrics"]


class LogMetrics(Logging):
    """Writes the losses of steps, the metrics of epochs and scheduled hyperparameters to logs.

    Scalars are written at the number of training steps that were taken. ``step/loss`` is the loss of the last
    step, and so are other numbers that a step of your own gives; ``step/learning_rate`` and others are
    hyperparameters that a `Scheduler` sets. ``validation/loss``, by the name of a phase, is the mean of an
    epoch, and ``epoch`` its number. Losses of steps are read from the device together, two seconds' at once.

    Args:
        logs: a `CSVLog`, `JSONLinesLog` or `TensorBoardLog`, or several.
        every: after how many steps of training to write. (default: 10)

    Raises:
        TypeError: no log, or one that keeps no scalars.
        ValueError: `every` is no number of steps.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> from pathlib import Path
        >>> from fluxlike.learning.callbacks.log_metrics import LogMetrics
        >>> from fluxlike.learning.logs import CSVLog
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logging = LogMetrics(CSVLog(f"{folder}/run.csv"), every=2)
        ...     learner = fl.Learner(
        ...         fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, callbacks=[logging], progress=False
        ...     )
        ...     _ = fl.fit(learner)
        ...     text = Path(f"{folder}/run.csv").read_text()
        >>> text.splitlines()[0]
        'step,step/loss,training/loss,epoch'
        >>> len(text.splitlines())
        3
    """

    kinds = ("scalars",)
    reads = ("out", "metrics")
    of_first_rank = True

    def __init__(self, *logs: Log, every: int = 10) -> None:
        super().__init__(*logs)
        self.every = checked_every(self.name, every)

    def step_end(self, run: Any) -> None:
        if run.step % self.every or not run.trains:
            return
        values = {f"step/{name}": value for name, value in numbers_of(run.out)}
        values |= {f"step/{name}": value for name, value in scheduled(run.hyperparameters).items()}
        if values:
            for log in self.logs:
                log.later(values, run.step)

    def epoch_end(self, run: Any) -> None:
        values = {f"{run.phase}/{name}": value for name, value in run.metrics.items()}
        if run.phase == run.learner.phases[-1].name:
            values["epoch"] = run.epoch
        for log in self.logs:
            log.scalars(values, run.step)
