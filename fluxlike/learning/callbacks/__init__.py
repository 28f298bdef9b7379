"""Callbacks: what happens besides the steps of a fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxlike.learning.callbacks.checkpointer import Checkpointer
from fluxlike.learning.callbacks.conditional import ConditionalCallback, throttle
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.early_stopping import EarlyStopping
from fluxlike.learning.callbacks.garbage import GarbageCollect
from fluxlike.learning.callbacks.log_histograms import LogGradients, LogHistograms
from fluxlike.learning.callbacks.log_hyperparams import LogHyperParams
from fluxlike.learning.callbacks.log_metrics import LogMetrics
from fluxlike.learning.callbacks.log_visualization import LogVisualization
from fluxlike.learning.callbacks.metrics import Metrics
from fluxlike.learning.callbacks.metrics_printer import MetricsPrinter
from fluxlike.learning.callbacks.nonfinite import NonFiniteLoss, StopOnNonFiniteLoss
from fluxlike.learning.callbacks.profiler import Profiler, time_report
from fluxlike.learning.callbacks.progress import ProgressPrinter
from fluxlike.learning.callbacks.recorder import Recorder
from fluxlike.learning.callbacks.sanity import SanityCheck
from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.callbacks.to_device import ToDevice
from fluxlike.learning.callbacks.traces import Traces
from fluxlike.rooms import room

__all__ = [
    "Checkpointer",
    "ConditionalCallback",
    "CustomCallback",
    "EarlyStopping",
    "GarbageCollect",
    "LogGradients",
    "LogHistograms",
    "LogHyperParams",
    "LogMetrics",
    "LogVisualization",
    "Metrics",
    "MetricsPrinter",
    "NonFiniteLoss",
    "Profiler",
    "ProgressPrinter",
    "Recorder",
    "SanityCheck",
    "Scheduler",
    "StopOnNonFiniteLoss",
    "ToDevice",
    "Traces",
    "throttle",
    "time_report",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__)
