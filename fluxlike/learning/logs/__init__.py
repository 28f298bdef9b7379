"""Logs that a run writes as it goes: TensorBoard, CSV and JSON lines."""

from __future__ import annotations

from fluxlike.learning.logs.csv import CSVLog
from fluxlike.learning.logs.jsonlines import JSONLinesLog
from fluxlike.learning.logs.protocol import Log
from fluxlike.learning.logs.tensorboard import TensorBoardLog

__all__ = ["CSVLog", "JSONLinesLog", "Log", "TensorBoardLog"]


def __dir__() -> list[str]:
    return sorted(__all__)
