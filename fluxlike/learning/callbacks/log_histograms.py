"""`LogHistograms` and `LogGradients`: how parameters and gradients are spread, in logs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fluxlike.learning.callbacks.every import checked_every
from fluxlike.learning.callbacks.logging import Logging
from fluxlike.learning.logs.protocol import Log
from fluxlike.learning.ranks import whole
from fluxlike.trees.places import Where
from fluxlike.trees.trainables import partition, trainables

__all__ = ["LogGradients", "LogHistograms"]

Places = Where | tuple[Where, ...] | None


class LogHistograms(Logging):
    """Writes histograms of the parameters to logs, as ``parameters/layers[0].weight``.

    Args:
        logs: a `TensorBoardLog` or `JSONLinesLog`, or several.
        every: after how many steps of training to write. (default: at the end of every epoch)
        where: places of the model, as for `at`. (default: all parameters)

    Raises:
        TypeError: no log, or one that keeps no histograms.
        ValueError: `every` is no number of steps.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> from pathlib import Path
        >>> from fluxlike.learning.callbacks.log_histograms import LogHistograms
        >>> from fluxlike.learning.logs import JSONLinesLog
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logging = LogHistograms(JSONLinesLog(f"{folder}/run.jsonl"), where=".weight")
        ...     learner = fl.Learner(
        ...         fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, callbacks=[logging], progress=False
        ...     )
        ...     _ = fl.fit(learner)
        ...     print(Path(f"{folder}/run.jsonl").read_text()[:59])
        {"step": 1, "histogram": {"name": "parameters/weight", "edg
    """

    kinds = ("histograms",)
    reads = ("model",)

    def __init__(self, *logs: Log, every: int | None = None, where: Places = None) -> None:
        super().__init__(*logs)
        self.every = None if every is None else checked_every(self.name, every)
        self.where = where

    def step_end(self, run: Any) -> None:
        if self.every and run.trains and run.step % self.every == 0:
            _write(run, self.logs, "parameters", _chosen(run.model, self.where), run.step)

    def epoch_end(self, run: Any) -> None:
        if not self.every and run.phase == run.learner.phases[-1].name:
            _write(run, self.logs, "parameters", _chosen(run.model, self.where), run.step)


class LogGradients(Logging):
    """Writes histograms of the gradient to logs, as ``gradients/layers[0].weight``.

    It listens inside the step, so the step runs in parts, and not under ``jit=True``.

    Args:
        logs: a `TensorBoardLog` or `JSONLinesLog`, or several.
        every: after how many steps of training to write. (default: 100)
        where: places of the model, as for `at`. (default: all parameters that the loss reaches)

    Raises:
        TypeError: no log, or one that keeps no histograms.
        ValueError: `every` is no number of steps; in the learner, ``jit=True``, or a step that has no parts.

    Example:
        >>> import tempfile, torch, fluxlike as fl
        >>> from pathlib import Path
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 4
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     logging = fl.callbacks.LogGradients(fl.logs.JSONLinesLog(f"{folder}/run.jsonl"), every=2)
        ...     options = {"callbacks": [logging], "progress": False}
        ...     _ = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options))
        ...     text = Path(f"{folder}/run.jsonl").read_text()
        >>> text[:54]
        '{"step": 2, "histogram": {"name": "gradients/weight", '
    """

    kinds = ("histograms",)
    reads = ("grads",)

    def __init__(self, *logs: Log, every: int = 100, where: Places = None) -> None:
        super().__init__(*logs)
        self.every = checked_every(self.name, every)
        self.where = where

    def backward_end(self, run: Any) -> None:
        step = run.step + 1  # that has this gradient
        if step % self.every == 0:
            _write(run, self.logs, "gradients", _chosen(run.grads, self.where), step)


def _chosen(tree: Any, where: Places) -> Iterator[tuple[str, Tensor]]:
    """Tensors of a model, or of a gradient, with their paths."""
    yield from trainables(tree if where is None else partition(tree, where)[0], paths=True)


def _write(
    run: Any, logs: tuple[Log, ...], what: str, found: Iterator[tuple[str, Tensor]], step: int
) -> None:
    for path, tensor in found:
        if not tensor.numel():
            continue
        name, tensor = f"{what}/{path.removeprefix('.') or 'value'}", whole(tensor)
        for log in logs if run.ranks.first else ():
            if tensor.is_complex():
                log.histogram(f"{name}/absolute", tensor.detach().abs(), step)
            else:
                log.histogram(name, tensor, step)
