"""The one file that reaches into the worker processes of torch's DataLoader (private parts of torch)."""

from __future__ import annotations

import pickle
import signal
import threading
from multiprocessing.connection import wait
from typing import Any

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling, worker

__all__ = ["Workers", "become_the_only_one"]


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
            try:
                self._watch()
                self._require_alive()
                return pickle.loads(next(self._iterator))
            finally:
                self._stop_watching()
        except (RuntimeError, OSError, EOFError) as error:
            self._stop_watching()  # if the signal of a death came before that was done
            if isinstance(error, ChildProcessError):
                raise
            self._await_death()
            self._require_alive()
            raise ChildProcessError(str(error) or type(error).__name__) from error

    def close(self) -> None:
        """End the processes."""
        self._iterator._shutdown_workers()

    def _watch(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # signals come to the main thread; here torch looks every few seconds
        pids = tuple(process.pid for process in self._iterator._workers)
        signal_handling._set_worker_pids(id(self._iterator), pids)
        self._iterator._worker_pids_set = True

    def _stop_watching(self) -> None:
        if self._iterator._worker_pids_set:
            signal_handling._remove_worker_pids(id(self._iterator))
            self._iterator._worker_pids_set = False

    def _await_death(self) -> None:
        """Let the exit code of a worker that is dying be known, if there is one."""
        dying = {process.sentinel: process for process in self._iterator._workers}
        for sentinel in wait(list(dying), timeout=5):
            dying[sentinel].join(5)  # the sentinel tells of the end before the exit code is there

    def _require_alive(self) -> None:
        for process in self._iterator._workers:
            code = process.exitcode
            if code is not None:
                raise ChildProcessError(f"the worker process {process.pid} {_ended(code)}")


def become_the_only_one() -> tuple[int, int]:
    """Let this worker process take itself for the only one, so that nothing is shared out a second time.

    Returns:
        Which it was, and of how many.
    """
    info = worker.get_worker_info()
    if info is None:
        raise RuntimeError("this is no worker process")
    worker._worker_info = worker.WorkerInfo(id=0, num_workers=1, seed=info.seed, dataset=info.dataset)
    return info.id, info.num_workers


def _ended(code: int) -> str:
    if code >= 0:
        return f"ended with the exit code {code}"
    name = signal.Signals(-code).name
    memory = ", as the system does where memory runs out: load with fewer workers or smaller batches"
    return f"was killed by {name}{memory * (name == 'SIGKILL')}"
