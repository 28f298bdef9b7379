"""`Recorder`: the history of a run."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from fluxlike.learning.callback import Callback

__all__ = ["Recorder", "scheduled"]

_RATE = "learning_rate"


class Recorder(Callback):
    """Writes the history: a row for each training step with its loss, and for each epoch with its metrics.

    Hyperparameters that a `Scheduler` sets are in the rows of the steps, ``lr`` as ``learning_rate``; the
    rates of the last step are in the row of the epoch too.

    Example:
        >>> import torch, fluxlike as fl
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 5
        >>> learner = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, progress=False), 2)
        >>> len(learner.history.steps), learner.history.epochs["epoch"]
        (10, [1, 2])
    """

    reads = ("out", "metrics")
    writes = ("history",)

    def __repr__(self) -> str:
        return "Recorder()"

    def fit_begin(self, run: Any) -> None:
        run.live["begun"] = perf_counter() - run.memory.get("seconds", 0.0)

    def epoch_begin(self, run: Any) -> None:
        run.live["begun"] = perf_counter()

    def step_end(self, run: Any) -> None:
        if not run.trains:
            return
        row = {"step": run.step, "epoch": run.epoch, "phase": run.phase}
        if (loss := run.out.get("loss")) is not None:
            row["loss"] = loss
        if values := run.hyperparameters:
            row |= scheduled(values)
        run.record(row)

    def epoch_end(self, run: Any) -> None:
        seconds = run.ranks.firsts(perf_counter() - run.live["begun"])
        row = {"epoch": run.epoch, "phase": run.phase, **run.metrics}
        if run.trains and len(run.history.steps):
            last = run.history.steps[-1]
            if (last["epoch"], last["phase"]) == (run.epoch, run.phase):
                row |= {name: value for name, value in last.items() if name.startswith(_RATE)}
        run.history = run.history.add_epoch({**row, "seconds": seconds})
        run.live["begun"] = perf_counter()

    def save(self, run: Any, /) -> dict[str, Any]:
        begun = run.live.get("begun")  # none after an error before the fit began
        return dict(run.memory) if begun is None else {"seconds": perf_counter() - begun}


def scheduled(values: dict[str, Any], /) -> dict[str, Any]:
    """Hyperparameters by column: ``lr`` has its whole name, and a pair such as betas has two columns."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if name == "lr" or name.startswith("lr."):
            name = _RATE + name[2:]
        if isinstance(value, (tuple, list)):
            found.update({f"{name}[{place}]": part for place, part in enumerate(value)})
        else:
            found[name] = value
    return found
