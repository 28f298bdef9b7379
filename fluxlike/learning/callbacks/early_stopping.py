"""`EarlyStopping`: the end of a fit that gets no better."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.metrics import metrics_of
from fluxlike.learning.direction import Mode, mode_of
from fluxlike.learning.events import CancelFit

__all__ = ["EarlyStopping"]


@dataclass(frozen=True)
class EarlyStopping(Callback):
    """End the fit when a metric has not got better for some epochs.

    Better is by more than `min_delta` than the best so far; so a score that stays the same or is NaN
    is no better, and neither is an infinite one. A later fit goes on counting. The model that the fit gives
    is the last one; the best one is kept by a `Checkpointer`.

    Args:
        by: the loss or metric, by its name in the history. (default: ``"loss"``)
        phase: the phase that it is of. (default: ``"validation"``)
        patience: after how many epochs in a row without a better score to stop. (default: 5)
        min_delta: by how much a score must be better to count. (default: 0)
        mode: ``"min"`` where less is better, or ``"max"``. (default: ``"min"`` for a loss, and what a metric
            declares by its ``higher_is_better``, as `fluxlike.metrics.accuracy` and those of torchmetrics do)

    Raises:
        ValueError: a setting out of range; in the fit, a metric or a phase that is not there, a metric
            that is no number, or one of which nothing says whether more or less is better.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.early_stopping import EarlyStopping
        >>> stop = EarlyStopping("accuracy", patience=3, mode="max")
        >>> stop.better(0.9, than=0.8), stop.better(0.8, than=0.8), stop.better(float("nan"), than=0.8)
        (True, False, False)
    """

    by: str = "loss"
    phase: str = "validation"
    patience: int = 5
    min_delta: float = 0.0
    mode: Mode | None = None
    reads = ("metrics",)

    def __post_init__(self) -> None:
        if self.mode is not None:
            self._mode()
        if isinstance(self.patience, bool) or not isinstance(self.patience, int) or self.patience < 1:
            raise ValueError(
                f"EarlyStopping has patience={self.patience!r}; write a number of epochs, from 1"
            )
        if not 0 <= self.min_delta < math.inf:
            raise ValueError(f"EarlyStopping has min_delta={self.min_delta!r}; write a number of at least 0")

    def init(self) -> dict[str, Any]:
        return {"best": None, "waited": 0}

    def better(self, score: float, /, *, than: float | None) -> bool:
        """Whether a score is better than the best so far; any finite one is better than None."""
        if not math.isfinite(score):
            return False
        if than is None:
            return True
        gain = than - score if self._mode() == "min" else score - than
        return gain > self.min_delta

    def fit_begin(self, run: Any) -> None:
        phases = [phase.name for phase in run.learner.phases]
        if self.phase not in phases:
            raise ValueError(
                f"it watches the phase {self.phase!r}, and this learner has {', '.join(map(repr, phases))}; "
                f"give data for it, or write EarlyStopping({self.by!r}, phase={phases[0]!r})"
            )
        self._mode(run)

    def epoch_end(self, run: Any) -> None:
        if run.phase != self.phase:
            return
        memory, score, mode = run.memory, self._score(run.metrics), self._mode(run)
        if replace(self, mode=mode).better(score, than=memory["best"]):
            memory["best"], memory["waited"] = score, 0
            return
        memory["waited"] += 1
        if memory["waited"] >= self.patience:
            way = "less" if mode == "min" else "more"
            best = "none was finite" if memory["best"] is None else f"the best was {memory['best']:.6g}"
            raise CancelFit(
                f"the {self.by} of {self.phase} has not got better for {memory['waited']} epochs: {best}"
                f", the last is {score:.6g} ({way} is better, mode={mode!r})"
            )

    def _mode(self, run: Any = None) -> Mode:
        metrics = None if run is None else metrics_of(run.learner.callbacks)
        return mode_of(self.by, self.mode, metrics, write=f"EarlyStopping({self.by!r}")

    def _score(self, metrics: Any) -> float:
        if self.by not in metrics:
            there = ", ".join(map(repr, metrics)) or "none: the learner has no callback Metrics"
            raise ValueError(
                f"there is no metric {self.by!r} in {self.phase}; there are {there}. Names are those of "
                "the history, without the phase: EarlyStopping('loss')"
            )
        found = metrics[self.by]
        if isinstance(found, Tensor) and found.numel() != 1:
            raise ValueError(
                f"the metric {self.by!r} is of shape {tuple(found.shape)}; watch one that is a number"
            )
        return float(found)
