"""The one file that reaches into the worker processes of torch's DataLoader (private parts of torch)."""

from __future__ import annotations

import pickle
import signal
import threading
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

__all__ = ["Workers"]


class Workers:
    """The running worker processes of a DataLoader with at least one.

    torch tells of the death of a worker in the middle of whatever the main thread does. Here it is told in
    `next` alone.

    Args:
        loader: torch's, with ``num_workers`` of at least 1, whose items are pickled.
    """

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._iterator: Any = iter(loader)
        self._stop_watching()

    def next(self) -> Any:
        """The next item, unpacked: its tensors' memory comes from the worker.

        Raises:
            ChildProcessError: a worker died; it says how.
            StopIteration: there are no more.
        """
        try:
            self._watch()
            self._require_alive()
            return pickle.loads(next(self._iterator))
        except (RuntimeError, OSError, EOFError) as error:
            if isinstance(error, ChildProcessError):
                raise
            wait([worker.sentinel for worker in self._iterator._workers], timeout=1)
            self._require_alive()
            raise ChildProcessError(str(error)) from error
        finally:
            self._stop_watching()

    def close(self) -> None:
        """End the processes."""
        self._iterator._shutdown_workers()

    def _watch(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals come to the main thread; here torch looks every few seconds
        pids = tuple(worker.pid for worker in self._iterator._workers)
        signal_handling._set_worker_pids(id(self._iterator), pids)
        self._iterator._worker_pids_set = True

    def _stop_watching(self) -> None:
        if self._iterator._worker_pids_set:
            signal_handling._remove_worker_pids(id(self._iterator))
            self._iterator._worker_pids_set = False

    def _require_alive(self) -> None:
        for worker in self._iterator._workers:
            code = worker.exitcode
            if code is not None:
                raise ChildProcessError(f"the worker process {worker.pid} {_ended(code)}")


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with the exit code {code}"
