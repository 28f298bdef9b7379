"""`Metrics`: the loss and the metrics of every epoch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fluxlike.learning.callback import Callback, innermost
from fluxlike.learning.events import LearningError
from fluxlike.learning.metrics.collect import RESERVED, as_metrics, computed
from fluxlike.learning.metrics.host import Scalar, host_numbers, is_scalar
from fluxlike.learning.metrics.mean import Mean
from fluxlike.learning.metrics.protocol import Meter, Metric
from fluxlike.learning.ranks import whole

__all__ = ["Metrics", "metrics_of", "numbers_of", "update"]

_OUTPUTS = ("outputs", "targets")


class Metrics(Callback):
    """The loss and the metrics of every epoch, over samples and not over batches.

    Nothing is copied from the device until the epoch ends; but a metric of torchmetrics that checks what it
    gets waits for the device at every step, unless it is made with ``validate_args=False``. Besides the loss,
    every other number that a step of your own gives has its mean over samples in the history. On the ranks of
    a mesh, functions get outputs and targets over the mesh, and metrics of torchmetrics all of them on each
    rank.

    Args:
        metrics: metrics of torchmetrics, functions of outputs and targets that give the mean over a batch,
            such as ``fl.metrics.accuracy``, or a dict of them by name. (default: none)

    Raises:
        TypeError: something is no metric.
        ValueError: two metrics of one name.
        LearningError: in the fit, a step without outputs and targets, or one that gives a number by the name
            of a metric or of a column of the history.

    Example:
        >>> import torch, fluxlike as fl
        >>> data = [(torch.ones(3, 2), torch.ones(3, 1)), (torch.ones(1, 2), torch.zeros(1, 1))]
        >>> learner = fl.Learner(
        ...     fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, progress=False,
        ...     metrics={"ones": lambda outputs, targets: targets.mean()},
        ... )
        >>> fl.fit(learner).history.last("training", "ones")
        0.75
    """

    reads = ("batch", "out")
    writes = ("metrics",)

    def __init__(self, *metrics: Any) -> None:
        self.metrics = as_metrics(metrics[0] if len(metrics) == 1 else metrics)

    def __repr__(self) -> str:
        return f"Metrics({', '.join(metric.name for metric in self.metrics)})"

    def fit_begin(self, run: Any) -> None:
        saved = run.memory
        if not saved:
            self.epoch_begin(run)
            return
        known = [metric.name for metric in self.metrics]
        if list(saved["meters"]) != known:
            raise LearningError(
                f"the epoch began with the metrics {', '.join(saved['meters']) or 'none'}, and now they are "
                f"{', '.join(known) or 'none'}; go on with the same, and change them after an epoch"
            )
        run.live["means"] = {name: Mean.restore(state) for name, state in saved["means"].items()}
        run.live["meters"] = [metric.restore(saved["meters"][metric.name]) for metric in self.metrics]

    def epoch_begin(self, run: Any) -> None:
        run.live["means"] = {}
        run.live["meters"] = [metric.init() for metric in self.metrics]

    def step_end(self, run: Any) -> None:
        out = run.out
        if not out:  # a phase that measures nothing
            return
        live, n = run.live, run.samples
        means = live["means"]
        for name, value in out.items():
            if name in means:
                means[name].update(value, n)
            elif name not in _OUTPUTS and is_scalar(value):
                self._require_free(name)
                means[name] = mean = Mean()
                mean.update(value, n)
        if live["meters"]:
            update(live["meters"], *self._pair(out), n)

    def epoch_end(self, run: Any) -> None:
        means = {name: mean.compute() for name, mean in run.live["means"].items()}
        measured = computed(run.live["meters"])
        for name in measured:
            if name in means:
                raise _taken(name, f"the metric {name!r}")
        run.metrics = {**dict(zip(means, host_numbers(list(means.values())), strict=True)), **measured}
        self.epoch_begin(run)

    def save(self, run: Any, /) -> Mapping[str, Any]:
        if run.batch_number == 0:
            return {}
        if "means" not in run.live:  # an error before the fit began
            return dict(run.memory)
        meters = zip(self.metrics, run.live["meters"], strict=True)
        return {
            "means": {name: mean.state() for name, mean in run.live["means"].items()},
            "meters": {metric.name: meter.state() for metric, meter in meters},
        }

    def _pair(self, out: Mapping[str, Any]) -> tuple[Any, Any]:
        try:
            return out["outputs"], out["targets"]
        except KeyError:
            raise LearningError(
                f"the metric {self.metrics[0].name!r} needs outputs and targets, and the step gives "
                f"{', '.join(map(repr, out))}; let its dict have 'outputs' and 'targets' too"
            ) from None

    def _require_free(self, name: str) -> None:
        if name in RESERVED and name != "loss":
            raise _taken(name, "that column of the history")
        if any(metric.name == name for metric in self.metrics):
            raise _taken(name, f"the metric {name!r}")


def metrics_of(callbacks: Iterable[Callback], /) -> list[Metric]:
    """What the callbacks of a learner measure."""
    return [m for c in map(innermost, callbacks) if isinstance(c, Metrics) for m in c.metrics]


def update(meters: Iterable[Meter], outputs: Any, targets: Any, n: int, /) -> None:
    """Let meters take in a batch: the whole of it on each rank, where it is over a mesh."""
    gathered: Any = None
    for meter in meters:
        if getattr(meter, "over_mesh", False):
            meter.update(outputs, targets, n)
        else:
            gathered = whole((outputs, targets)) if gathered is None else gathered
            meter.update(gathered[0], gathered[1], n)


def numbers_of(out: Mapping[str, Any], /) -> Iterator[tuple[str, Scalar]]:
    """The loss and the other numbers that a step gives, by name."""
    for name, value in out.items():
        if name not in _OUTPUTS and is_scalar(value):
            yield name, value


def _taken(name: str, by: str) -> LearningError:
    return LearningError(
        f"the step gives a number {name!r}, and {by} has this name already; call one of them otherwise"
    )
