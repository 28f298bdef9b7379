"""The callbacks that every learner has."""

from __future__ import annotations

from typing import Any

from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.metrics import Metrics
from fluxlike.learning.callbacks.metrics_printer import MetricsPrinter
from fluxlike.learning.callbacks.nonfinite import StopOnNonFiniteLoss
from fluxlike.learning.callbacks.progress import ProgressPrinter
from fluxlike.learning.callbacks.recorder import Recorder

__all__ = ["default_callbacks"]


def default_callbacks(metrics: Any, progress: bool, /) -> tuple[Callback, ...]:
    """Metrics, history, the stop at a loss that is not finite, and progress."""
    shown = (ProgressPrinter(), MetricsPrinter()) if progress else ()
    return (StopOnNonFiniteLoss(), Metrics(metrics), Recorder(), *shown)
