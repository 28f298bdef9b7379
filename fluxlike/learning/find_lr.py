"""The learning-rate finder: the loss while the rate grows, and what rate that suggests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.to_device import ToDevice
from fluxlike.learning.events import CancelFit
from fluxlike.learning.fit import fit
from fluxlike.learning.learner import Learner
from fluxlike.learning.phase import TrainingPhase
from fluxlike.optimisers.adjust import Adjuster
from fluxlike.optional import optional

__all__ = ["RateSearch", "find_lr"]

WEIGHT = 0.02  # of a loss in the average
FIRST = 10  # losses of which the average begins as the mean
FEWEST = 3
ERRORS = 2  # standard errors of that mean, by which a loss falls at least if it falls at all
ROUNDING = 1e-6  # of a loss
OVER = "the search is over"


@dataclass(frozen=True, repr=False)
class RateSearch:
    """The losses of steps with growing learning rates, as `find_lr` found them.

    Attributes:
        lrs: the rates, one a step.
        losses: the losses.
        smoothed: their exponential moving average, which begins as the mean of ten.
        stopped: why the search ended before its last rate, or None.

    Example:
        >>> import fluxlike as fl
        >>> found = fl.RateSearch((1e-3, 1e-2, 1e-1, 1.0), (2.0, 1.9, 1.0, 3.0), (2.0, 1.9, 1.0, 3.0))
        >>> found.steepest, found.minimum_tenth, found.suggestion
        (0.01, 0.01, 0.01)
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    stopped: str | None = None

    @property
    def steepest(self) -> float:
        """The rate at which the smoothed loss falls fastest, by the logarithm of the rate."""
        rates = [math.log(lr) for lr in self.lrs]
        last = max(self._lowest, FEWEST - 1)
        first = min(FIRST - 1, last - 2)  # the mean of a few losses is noise
        slopes = {
            i: (self.smoothed[i + 1] - self.smoothed[i - 1]) / (rates[i + 1] - rates[i - 1])
            for i in range(first + 1, last)
        }
        return self.lrs[min(slopes, key=lambda i: slopes[i])]

    @property
    def minimum_tenth(self) -> float:
        """A tenth of the rate at which the smoothed loss is lowest."""
        return self.lrs[self._lowest] / 10

    @property
    def falls(self) -> bool:
        """Whether the smoothed loss falls by more than its noise: two standard errors of its first mean."""
        first = min(FIRST, len(self.losses) // 2)
        begin = self.smoothed[first - 1]
        error = statistics.stdev(self.losses[:first]) / math.sqrt(first) if first > 1 else 0.0
        return begin - min(self.smoothed[first:]) > max(ERRORS * error, ROUNDING * abs(begin))

    @property
    def suggestion(self) -> float:
        """The smaller of the two.

        Raises:
            ValueError: the loss falls at no rate, so none is better than another.
        """
        if not self.falls:
            raise ValueError(
                f"no rate from {self.lrs[0]:.1e} to {self.lrs[-1]:.1e} lets the loss fall by more than its "
                "noise, so none is suggested: a model that has converged learns nothing more at any; for "
                "another one look at plot(), and give more steps, larger batches, or a rate of your own"
            )
        return min(self.steepest, self.minimum_tenth)

    @property
    def _lowest(self) -> int:
        return min(range(len(self.smoothed)), key=lambda i: self.smoothed[i])

    def plot(self) -> Any:
        """The losses by rate, as a figure of matplotlib.

        Returns:
            A ``matplotlib.figure.Figure``: a notebook shows it, ``savefig`` writes it.

        Raises:
            ImportError: matplotlib is not installed: ``pip install 'fluxlike[training]'``.
        """
        figure = optional("matplotlib.figure", "plot").Figure(figsize=(6, 3.6), layout="constrained", dpi=120)
        axis = figure.subplots()
        axis.plot(self.lrs, self.losses, color="#9a9a9a", lw=0.8, label="loss")
        axis.plot(self.lrs, self.smoothed, color="#2a78b5", lw=1.6, label="smoothed")
        if self.falls:
            for name, lr, colour in (
                ("steepest", self.steepest, "#d9722a"),
                ("minimum / 10", self.minimum_tenth, "#3f9b62"),
            ):
                axis.axvline(lr, color=colour, lw=1, ls="--", label=f"{name}: {lr:.1e}")
        low, high = min(self.losses), max(self.losses[:FIRST])
        axis.set_ylim(low - 0.1 * (high - low) - 1e-12, high + 0.3 * (high - low) + 1e-12)
        axis.set_xscale("log")
        axis.set_xlabel("learning rate")
        axis.set_ylabel("loss")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8.5)
        return figure

    def __repr__(self) -> str:
        lowest = self._lowest
        head = (
            f"RateSearch({len(self.lrs)} rates from {self.lrs[0]:.1e} to {self.lrs[-1]:.1e}"
            f"{': ' + self.stopped if self.stopped else ''})\n"
            f"  lowest loss   {self.smoothed[lowest]:.4g} at {self.lrs[lowest]:.1e}\n"
        )
        if not self.falls:
            return f"{head}  suggestion    none: the loss falls at no rate by more than its noise"
        return (
            f"{head}"
            f"  steepest      {self.steepest:.1e}\n"
            f"  minimum / 10  {self.minimum_tenth:.1e}\n"
            f"  suggestion    {self.suggestion:.1e}"
        )


def find_lr(
    learner: Learner,
    start: float = 1e-7,
    stop: float = 10.0,
    steps: int = 100,
    diverge: float = 4.0,
) -> RateSearch:
    """Look for a learning rate: train a copy of the model while the rate grows, and watch the loss.

    The rate grows by the same factor at each step, from `start` to `stop`; the search ends early where the
    loss is not finite or its average has come far above its lowest. The learner, its data and all
    random states stay as they are. Data that is shorter than the search is gone over again. Of the
    learner's callbacks only those that write the batch, the gradients or the model take part.

    Args:
        learner: the learner.
        start: the first rate. (default: 1e-7)
        stop: the last rate. (default: 10)
        steps: how many rates. (default: 100)
        diverge: how many times its lowest value the smoothed loss may reach. (default: 4)

    Returns:
        Rates and losses, with what they suggest, and a plot. A model that has converged learns at no rate:
        nothing is suggested there.

    Raises:
        ValueError: numbers that make no search, a rule without a learning rate, or a loss that is not
            finite or diverges within the first steps.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.find_lr import find_lr
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(256, 4)
        >>> data = fl.DataLoader((x, x.sum(1, keepdim=True)), batch_size=32)
        >>> learner = fl.Learner(fl.Dense(4, 1), data, fl.Descent(), fl.losses.mse)
        >>> found = find_lr(learner)
        >>> 0.01 < found.suggestion < 1
        True
        >>> learner = learner.replace(state=fl.adjust(learner.state, found.suggestion))

    Source: Smith 2017, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186.
    """
    if not 0 < start < stop:
        raise ValueError(
            f"find_lr(start={start!r}, stop={stop!r}): write two rates above 0, the smaller one first"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < FEWEST:
        raise ValueError(f"find_lr(steps={steps!r}): write how many rates, at least {FEWEST}")
    if not diverge > 1:
        raise ValueError(f"find_lr(diverge={diverge!r}): write a factor above 1")
    Adjuster(None)(learner.state, {"lr": start})  # an error here, not in a callback, where no rule has a rate
    phases = tuple(phase for phase in learner.phases if isinstance(phase, TrainingPhase))
    if not phases:
        raise ValueError(
            f"find_lr trains, and {learner!r} has no phase of training; write phases=[TrainingPhase()]"
        )
    guards = any(callback.guards for callback in learner.callbacks)  # so the step is the same
    search = _Search(start, stop, steps, diverge, guards)
    callbacks = (*(c for c in learner.callbacks if _takes_part(c)), search)
    searched = fit(learner.replace(callbacks=callbacks, phases=phases, phase=0, batch=0), steps)
    stopped = None if searched.stopped == OVER else searched.stopped
    return _found(searched.memory[search.name]["losses"], search, stopped)


@dataclass(frozen=True)
class _Search(Callback):
    """Set the rate of each step, note its loss, and end the fit."""

    start: float
    stop: float
    steps: int
    diverge: float
    guards: bool
    reads = ("out",)
    writes = ("state.lr",)
    after = (ToDevice,)

    def init(self) -> dict[str, Any]:
        return {"losses": [], "average": 0.0, "lowest": math.inf}

    def rate(self, step: int) -> float:
        """The rate of a step."""
        return float(self.start * (self.stop / self.start) ** (step / (self.steps - 1)))

    def fit_begin(self, run: Any) -> None:
        run.live["adjust"] = Adjuster(None)

    def step_begin(self, run: Any) -> None:
        run.state = run.live["adjust"](run.state, {"lr": self.rate(len(run.memory["losses"]))})

    def step_end(self, run: Any) -> None:
        memory, loss = run.memory, float(run.loss)
        if not math.isfinite(loss):
            raise CancelFit(f"the loss was {loss}")
        memory["losses"].append(loss)
        smoothed = memory["average"] = _blended(memory["average"], loss, len(memory["losses"]))
        lowest = memory["lowest"] = min(memory["lowest"], smoothed)
        if smoothed - lowest > (self.diverge - 1) * abs(lowest):
            raise CancelFit("the loss diverged")
        if len(memory["losses"]) == self.steps:
            raise CancelFit(OVER)


def _takes_part(callback: Callback) -> bool:
    return bool({part.split(".")[0] for part in callback.writes} & {"batch", "grads", "model"})


def _blended(average: float, loss: float, number: int) -> float:
    """The average after a loss: the mean of the first ones, then an exponential moving average."""
    weight = 1 / number if number <= FIRST else WEIGHT
    return average + weight * (loss - average)


def _found(losses: Sequence[float], search: _Search, stopped: str | None) -> RateSearch:
    lrs = tuple(search.rate(i) for i in range(len(losses)))
    if len(losses) < FEWEST:
        raise ValueError(
            f"the search ended after {len(losses)} steps, at the rate {search.rate(len(losses)):.1e}: "
            f"{stopped}; look at the data and the loss, or begin lower: "
            f"find_lr(learner, start={search.start / 100:.0e})"
        )
    average, smoothed = 0.0, []
    for number, loss in enumerate(losses, 1):
        average = _blended(average, loss, number)
        smoothed.append(average)
    return RateSearch(lrs, tuple(losses), tuple(smoothed), stopped)
