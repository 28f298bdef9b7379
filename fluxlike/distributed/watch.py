"""One rank's end ends all: what a rank tells of its errors, and does when it hears of another's."""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.util import Finalize
from types import TracebackType

import torch.distributed as dist

from fluxlike._private.network_errors import is_of_the_network
from fluxlike._private.process_groups import end_groups
from fluxlike.distributed.connection import meet
from fluxlike.distributed.hub import Message, line_of

__all__ = ["Watch", "abort"]

#: Seconds that a rank has for its own end once it has failed, or another one was interrupted.
_GRACE = {"failed": 10.0, "lost": 10.0, "interrupted": 30.0}

_watch: Watch | None = None


def abort(error: BaseException, /) -> None:
    """End every other rank with this rank's message, where an error is caught that should end the run.

    An error that nobody catches does so by itself (see `init`). A program that catches it, to word it or
    to choose its exit code, calls this in its ``except``. Without other ranks it does nothing.

    Args:
        error: what the others are told, as ``rank 2 failed: ValueError: …``. This rank then has
            10 seconds for its own end.

    Example:
        >>> def program():
        ...     raise ValueError("no such file: data.csv")
        >>> try:
        ...     program()
        ... except ValueError as error:
        ...     abort(error)
        ...     print(f"stopped: {error}")
        stopped: no such file: data.csv
    """
    if _watch is not None:
        _watch.tell(error)


class Watch:
    """This rank's connection to rank 0, the thread that listens to it, and the hooks that speak.

    Every rank makes one at the same time, when the default process group is there.

    Args:
        master: the address of rank 0's machine.
    """

    def __init__(self, master: str, /) -> None:
        global _watch
        self.rank = dist.get_rank()
        self._pid = os.getpid()
        self._told = self._leaving = False
        self._heard = threading.Event()
        self._verdict: Message = {}
        self._hub, self._line, lines = meet(self.rank, master)
        if self._line is None:
            return
        self._previous = sys.excepthook
        sys.excepthook = self._on_error
        atexit.register(self.end)
        if multiprocessing.parent_process() is not None:
            # multiprocessing prints errors itself, past sys.excepthook, and calls this while it does
            Finalize(None, self.end, exitpriority=1000)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)
        self._listener = threading.Thread(
            target=self._listen, args=(lines,), name="fluxlike: other ranks", daemon=True
        )
        self._listener.start()
        _watch = self

    def tell(self, error: BaseException, /) -> None:
        """Tell the other ranks of an error, once. Does not return where another rank was the first."""
        interrupted = isinstance(error, KeyboardInterrupt)
        state = "interrupted" if interrupted else "lost" if _is_of_the_network(error) else "failed"
        if state == "failed" and not self._told and "TORCHELASTIC_ERROR_FILE" in os.environ:
            _tell_torchrun(error)
        if self._say(state, _in_short(error)) and state == "lost" and self._heard.wait(5.0):
            self._stay_if_ending()
            if self._verdict.get("ended"):
                _print(f"rank {self.rank} fails: {_sentence(self._verdict)}")

    def end(self) -> None:
        """Leave: the last thing that a rank does, whether it failed or not."""
        line = self._line
        if line is None or self._pid != os.getpid():
            return
        error = _in_flight()
        if error is not None:
            self.tell(error)
        self._stay_if_ending()
        self._leaving = True
        failed = not self._say("ended", "")
        if not failed:
            end_groups()
        if failed or self._hub is None:
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
        if self._hub is not None:
            try:
                # the others may run on, and their connections meet here
                self._hub.over.wait(5.0 if failed else None)
            except KeyboardInterrupt:
                _print("rank 0 was interrupted while it waited for the others to end")
        self._listener.join(1.0)
        self._forget()

    def _say(self, state: str, message: str) -> bool:
        if self._told or self._line is None or self._pid != os.getpid():
            return False
        self._told = True
        with contextlib.suppress(OSError):  # rank 0 is gone, which the listening thread hears
            self._line.sendall(line_of({"state": state, "message": message}))
        return True

    def _stay_if_ending(self) -> None:
        """Leave the end of this process to the listening thread, where that ends it for another rank."""
        if self._heard.is_set() and self._verdict["rank"] != self.rank:
            time.sleep(0.0 if self._verdict["state"] == "interrupted" else 10.0)

    def _on_error(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None, /
    ) -> None:
        if _is_of_the_network(error):
            self.tell(error)
            self._previous(kind, error, trace)
        else:
            self._previous(kind, error, trace)
            self.tell(error)

    def _listen(self, lines: Iterator[Message]) -> None:
        verdict = next(lines, None)
        if verdict is None and not self._leaving:
            verdict = {"rank": 0, "state": "vanished", "message": "", "when": time.strftime("%H:%M:%S")}
        if verdict is None:
            return
        self._verdict = verdict
        self._heard.set()
        if verdict["rank"] == self.rank or verdict["state"] == "interrupted":
            _end_within(_GRACE[verdict["state"]])
            return
        _print(f"rank {self.rank} ends: {_sentence(verdict)}")
        next(lines, None)  # until rank 0 lets go, after the rank that was the first
        time.sleep(1.5)  # torchrun reports the first, by the second
        _end_now()

    def _forget(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.close()
        if self._hub is not None:
            self._hub.forget()


def _tell_torchrun(error: BaseException) -> None:
    """Let torchrun's report begin with this rank, where several end before it looks."""
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        raise error  # what is recorded is the error being handled
    except BaseException:
        get_error_handler().record_exception(error)


def _is_of_the_network(error: BaseException | None) -> bool:
    while error is not None:
        if is_of_the_network(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _in_flight() -> BaseException | None:
    """The error that is ending this process, where it can be seen."""
    error = sys.exc_info()[1]
    if isinstance(error, SystemExit):
        return None if error.code in (None, 0) else error.__context__ or error
    return error


def _in_short(error: BaseException) -> str:
    text = "".join(traceback.format_exception_only(error)).strip()
    return text if len(text) <= 1000 else f"{text[:1000]} …"


def _sentence(verdict: Message) -> str:
    rank, when, message = verdict["rank"], verdict["when"], verdict["message"]
    if verdict["state"] == "vanished":
        where = f" ({message})" if message else ""
        return (
            f"rank {rank}{where} vanished at {when} without a message: killed, for want of memory for "
            "example, or crashed outside Python"
        )
    if verdict["state"] == "lost" and verdict["ended"]:
        ended = " and ".join(f"rank {other} has ended at {when}" for other, when in verdict["ended"])
        return (
            f"{ended}, as if all was done, and rank {rank} still waits for it: every rank must take part in "
            f"every collective ({message[:120]})"
        )
    return f"rank {rank} failed: {message}"


def _print(text: str) -> None:
    # past sys.stderr, which the main thread may hold
    with contextlib.suppress(OSError):
        os.write(2, f"{text}\n".encode())


def _end_within(seconds: float) -> None:
    if hasattr(signal, "setitimer") and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL:
        # kept by the kernel, so also while Python is taken down
        signal.setitimer(signal.ITIMER_REAL, seconds)
    else:
        time.sleep(seconds)
        _end_now()


def _end_now() -> None:
    flush = threading.Thread(target=lambda: (sys.stdout.flush(), sys.stderr.flush()), daemon=True)
    with contextlib.suppress(RuntimeError):  # no thread starts while Python is taken down
        flush.start()
        flush.join(1.0)  # the main thread may hold what is flushed
    for child in multiprocessing.active_children():
        if child.daemon:
            child.terminate()
    os._exit(1)
