"""Logs that a run writes as it goes: TensorBoard, CSV and JSON lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fluxlike.learning.logs.csv import CSVLog
from fluxlike.learning.logs.jsonlines import JSONLinesLog
from fluxlike.learning.logs.protocol import Log
from fluxlike.learning.logs.tensorboard import TensorBoardLog
from fluxlike.rooms import room

__all__ = ["CSVLog", "JSONLinesLog", "Log", "TensorBoardLog"]

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__)
