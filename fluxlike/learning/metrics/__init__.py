"""Metrics: what is measured over the samples of an epoch."""

from __future__ import annotations

from fluxlike.learning.metrics.accuracy import accuracy
from fluxlike.learning.metrics.mean import Mean
from fluxlike.learning.metrics.protocol import Meter, Metric

__all__ = ["Mean", "Meter", "Metric", "accuracy"]


def __dir__() -> list[str]:
    return sorted(__all__)
