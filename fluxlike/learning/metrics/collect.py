"""The metrics of a run: from what a user writes, and to the columns of a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fluxlike.learning.metrics.functions import FunctionMetric
from fluxlike.learning.metrics.host import Number, Scalar, host_numbers
from fluxlike.learning.metrics.protocol import Meter, Metric
from fluxlike.learning.metrics.torchmetrics import TorchMetric, is_torchmetric

__all__ = ["RESERVED", "as_metrics", "computed"]

RESERVED = ("step", "epoch", "phase", "loss", "learning_rate", "seconds")


def as_metrics(metrics: Any, /) -> tuple[Metric, ...]:
    """The metrics that a user wrote, each under a name of its own.

    Args:
        metrics: one of these, several, or a dict from name to one: a function from outputs and targets to the
            mean over a batch; a metric or a collection of torchmetrics; or a `Metric`.

    Raises:
        TypeError: something is no metric.
        ValueError: two have one name, or one has a name that the history has a use for.

    Example:
        >>> from fluxlike.learning.metrics.accuracy import accuracy
        >>> [metric.name for metric in as_metrics({"right": accuracy, "error": lambda y, t: (y - t).mean()})]
        ['right', 'error']
    """
    if isinstance(metrics, Mapping):
        found = [_metric(value, _checked_name(name)) for name, value in metrics.items()]
    elif is_torchmetric(metrics) or not isinstance(metrics, Iterable) or isinstance(metrics, (str, bytes)):
        found = [_metric(metrics, None)]
    else:
        found = [_metric(value, None) for value in metrics]
    for name, times in Counter(metric.name for metric in found).items():
        if times > 1:
            raise ValueError(
                f"{times} metrics have the name {name!r}; name them by a dict, "
                f'metrics={{"{name}": …, "other": …}}'
            )
        if name in RESERVED:
            raise ValueError(
                f"a metric has the name {name!r}, which is a column of the history already; name it by a "
                f'dict, metrics={{"my_{name}": …}}'
            )
    return tuple(found)


def computed(meters: Iterable[Meter], /) -> dict[str, Number]:
    """The results of several meters by column, read from their device together.

    Raises:
        ValueError: two have one column, or one is a column of the history already.
    """
    found: dict[str, Scalar] = {}
    for meter in meters:
        columns = meter.compute()
        for name in columns:
            if name in found or name in RESERVED:
                raise ValueError(
                    f"two metrics, or a metric and the history itself, have the column {name!r}; name the "
                    f'metric by a dict, metrics={{"another": …}}'
                )
        found |= columns
    return dict(zip(found, host_numbers(list(found.values())), strict=True))


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a metric is a string, found {name!r}")
    return name


def _metric(value: Any, name: str | None) -> Metric:
    if is_torchmetric(value):
        return TorchMetric(value, name)
    if isinstance(value, type):
        raise TypeError(f"a metric is the class {value.__name__}; give an object of it: {value.__name__}(…)")
    if isinstance(value, Metric):
        if name not in (None, value.name):
            raise ValueError(f"the metric {value.name!r} is called {name!r} in the dict; give it one name")
        return value
    if callable(value):
        return FunctionMetric(value, name)
    raise TypeError(
        f"{value!r} is a {type(value).__name__}, no metric; give a function f(outputs, targets) of a batch, "
        "such as fluxlike's accuracy, or a metric of torchmetrics"
    )
