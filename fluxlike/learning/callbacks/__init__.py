"""Callbacks: what happens besides the steps of a fit."""

from __future__ import annotations

from fluxlike.learning.callbacks.checkpointer import Checkpointer
from fluxlike.learning.callbacks.early_stopping import EarlyStopping
from fluxlike.learning.callbacks.metrics import Metrics
from fluxlike.learning.callbacks.nonfinite import NonFiniteLoss, StopOnNonFiniteLoss
from fluxlike.learning.callbacks.progress import MetricsPrinter, ProgressPrinter
from fluxlike.learning.callbacks.recorder import Recorder
from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.callbacks.to_device import ToDevice

__all__ = [
    "Checkpointer",
    "EarlyStopping",
    "Metrics",
    "MetricsPrinter",
    "NonFiniteLoss",
    "ProgressPrinter",
    "Recorder",
    "Scheduler",
    "StopOnNonFiniteLoss",
    "ToDevice",
]
