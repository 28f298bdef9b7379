"""Metrics: what is measured over the samples of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxlike.learning.metrics.accuracy import accuracy
from fluxlike.learning.metrics.mean import Mean
from fluxlike.learning.metrics.protocol import Meter, Metric
from fluxlike.rooms import room

__all__ = ["Mean", "Meter", "Metric", "accuracy"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__)
