"""`Checkpointer`: all that a run needs to go on, saved as it goes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from fluxlike.learning.callback import EVERYTHING, Callback
from fluxlike.learning.callbacks.every import checked_every
from fluxlike.learning.callbacks.metrics import metrics_of
from fluxlike.learning.checkpoints.store import Store
from fluxlike.learning.checkpoints.together import gathered, on_first, over_mesh
from fluxlike.learning.checkpoints.writer import AsyncWriter
from fluxlike.learning.direction import Mode, mode_of
from fluxlike.learning.events import LearningError
from fluxlike.learning.packing import packed

__all__ = ["Checkpointer"]


@dataclass(frozen=True)
class Checkpointer(Callback):
    """Saves the learner at the end of every epoch, or every so many steps, and keeps the newest and the best.

    ``fit(learner, epochs, resume=True)`` goes on from the newest to the same bits as a run that was never
    ended. A checkpoint is one file, which appears by one rename once all of it is on the disk, so a run may
    be killed at any instant. It is written in the background, from a copy in main memory.

    Of a model over a mesh the first rank writes, from its main memory, in which model and state are gathered
    tensor by tensor; every rank reads the folder when the run is resumed. The run may go on with another
    number of ranks, with another plan, or on one device.

    Args:
        folder: where to; one run at a time writes there.
        every: after how many steps of training to save, besides the end of every epoch. (default: never)
        keep: how many of the best to keep, besides the newest; None for all. (default: 3)
        by: the loss or metric, of the last phase, that says which are the best. (default: the newest are)
        mode: ``"min"`` where less is better, or ``"max"``. (default: ``"min"`` for a loss, and what a metric
            declares by its ``higher_is_better``, as `fluxlike.metrics.accuracy` and those of torchmetrics do)
        background: whether the run goes on while a checkpoint is written. (default: True)

    Raises:
        ValueError: `every` or `keep` is no number from 1, or `mode` is another.
        LearningError: at the begin of a fit, the folder has checkpoints of another run.
        CallbackError: at the begin of a fit, nothing says whether more or less of `by` is better.
        CallbackError: a checkpoint can't be written, as on a full disk; the older ones are whole.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 5
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     saving = fl.callbacks.Checkpointer(folder, by="loss")
        ...     options = {"callbacks": [saving], "progress": False}
        ...     learner = fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options)
        ...     _ = fl.fit(learner, 2)
        ...     best = fl.load_learner(folder, like=learner, by="loss")
        ...     learner = fl.fit(learner, 3, resume=True)
        >>> best.step, learner.step
        (10, 15)
    """

    folder: str | os.PathLike[str]
    every: int | None = None
    keep: int | None = 3
    by: str | None = None
    mode: Mode | None = None
    background: bool = True
    reads = (EVERYTHING,)

    def __post_init__(self) -> None:
        self._store("min" if self.mode is None else self._mode())  # which checks the other settings
        if self.every is not None:
            checked_every("Checkpointer", self.every)

    def _store(self, mode: Mode) -> Store:
        return Store(self.folder, self.keep, by=self.by, mode=mode)

    def _mode(self, run: Any = None) -> Mode:
        metrics = None if run is None else metrics_of(run.learner.callbacks)
        return mode_of(self.by, self.mode, metrics, write=f"Checkpointer(folder, by={self.by!r}")

    def fit_begin(self, run: Any) -> None:
        store = self._store(self._mode(run))
        over = over_mesh(run.as_learner().model)
        on_first(over, lambda: self._open(store, run.step))
        run.live["store"], run.live["saved"], run.live["over"] = store, None, over
        run.live["writer"] = AsyncWriter(store) if self.background else None

    def step_end(self, run: Any) -> None:
        if self.every and run.trains and run.step % self.every == 0:
            self._save(run)

    def epoch_end(self, run: Any) -> None:
        if run.phase == run.learner.phases[-1].name:
            if self.by is not None and self.by not in run.metrics:
                raise LearningError(
                    f"Checkpointer keeps the best by {self.by!r}, which {run.phase} does not give; it gives "
                    f"{', '.join(map(repr, run.metrics)) or 'nothing: the learner has no callback Metrics'}"
                )
            self._save(run, run.metrics)

    def fit_end(self, run: Any) -> None:
        if run.live["saved"] != run.place:
            self._save(run)
        on_first(run.live["over"], lambda: self.exception(run))

    def exception(self, run: Any) -> None:
        open_ = run.live.pop("writer", None) or run.live.get("store")
        if open_ is not None:
            open_.close()

    def _open(self, store: Store, step: int) -> None:
        newest = store.open().newest()
        if newest is not None and newest.step > step:
            store.close()
            raise LearningError(
                f"{store.folder} has a checkpoint of step {newest.step}, and the learner is at step {step}: "
                "go on from it by fit(learner, epochs, resume=True), or give this run a folder of its own"
            )

    def _save(self, run: Any, metrics: Any = None) -> None:
        tree, plain = packed(run.as_learner())
        scores = {name: value for name, value in (metrics or {}).items() if isinstance(value, (int, float))}
        writer, over = run.live["writer"] or run.live["store"], run.live["over"]
        if over:
            tree = gathered(tree)
        on_first(over, lambda: writer.save(run.step, tree, plain, scores))
        run.live["saved"] = run.place
