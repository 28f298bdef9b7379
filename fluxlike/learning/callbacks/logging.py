"""`Logging`: what the callbacks have in common that write to logs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from fluxlike.learning.callback import Callback
from fluxlike.learning.logs.protocol import Kind, Log, requires

__all__ = ["Logging"]


class Logging(Callback):
    """A callback that writes to logs. Several may share a log.

    A learner that goes on takes back what the log has from after its step, so that nothing is there twice.
    What was written is in the hands of the system before a checkpoint is saved, and the logs are closed as
    the fit ends. Of the ranks of a mesh the first alone writes.

    Args:
        logs: the logs.

    Raises:
        TypeError: there is no log, or one does not keep what is to be written.
    """

    kinds: ClassVar[tuple[Kind, ...]] = ()

    def __init__(self, *logs: Log) -> None:
        if not logs:
            raise TypeError(
                f"{self.name} got no log; write {self.name}(TensorBoardLog('run')), of fluxlike.logs"
            )
        for log in logs:
            requires(log, *self.kinds, what=self.name)
        self.logs = logs

    def __repr__(self) -> str:
        return f"{self.name}({', '.join(type(log).__name__ for log in self.logs)})"

    def fit_begin(self, run: Any) -> None:
        if run.ranks.first and (run.step or run.resumes):
            for log in self.logs:
                log.rewind(run.step)

    def fit_end(self, run: Any) -> None:
        for log in self.logs if run.ranks.first else ():
            log.close()

    exception = fit_end

    def save(self, run: Any, /) -> Mapping[str, Any]:
        for log in self.logs if run.ranks.first else ():
            log.flush()
        memory: Mapping[str, Any] = run.memory
        return memory
