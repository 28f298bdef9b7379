"""One writer a folder: a lock that the system takes back when its process ends, however it ends.

The lock is `flock`'s on the file ``.lock``. On NFS, Linux holds it between machines too; where one of them
loses its connection, the server decides when the lock is free.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
import warnings
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # of Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock"]

_NAME = ".lock"
_LACKING = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
_LONGEST = 1000  # bytes that say who holds it

_held: set[int] = set()


def _let_go() -> None:
    """A forked process holds no locks: it would keep them when the one that took them is gone."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


class FolderLock:
    """The right to write to a folder, held until `close`, or until this process ends.

    Raises:
        RuntimeError: another run holds it.
    """

    def __init__(self, folder: Path, /) -> None:
        file = _locked(folder)
        #: Whether the file system knows locks, so that nobody else writes there.
        self.alone = file is not None
        self._file = -1 if file is None else file
        self._process = os.getpid()
        if file is not None:
            _held.add(file)
        self.close = weakref.finalize(self, _release, self._file, self._process)

    @property
    def held(self) -> bool:
        """Whether it was taken by this process and not given back: a forked one has to ask itself."""
        return self.close.alive and self._process == os.getpid()


def _release(file: int, process: int) -> None:
    if file in _held and process == os.getpid():
        _held.discard(file)
        os.close(file)


def _locked(folder: Path) -> int | None:
    """The descriptor of a lock file that is locked, or None where there are no locks."""
    while fcntl is not None:
        file = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, _LONGEST, 0).decode(errors="replace")
            os.close(file)
            if error.errno in _LACKING:
                break
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise RuntimeError(_taken(folder, holder)) from None
        if _is_there(folder, file):
            with contextlib.suppress(OSError):  # of a full disk: only the name in the error is lost
                os.ftruncate(file, 0)
                os.pwrite(file, _myself().encode(), 0)
            return file
        os.close(file)  # somebody removed it between the two
    warnings.warn(
        f"the file system of {folder} has no locks: see that only one run writes its checkpoints there; what "
        "a killed run left half-written is not removed",
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def _is_there(folder: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder / _NAME), os.fstat(file))
    except FileNotFoundError:
        return False


def _myself() -> str:
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}"


def _taken(folder: Path, holder: str) -> str:
    who = "".join(c for c in holder if c.isprintable()) or "another process"
    if who.startswith(f"process {os.getpid()} on {socket.gethostname()} "):
        return (
            f"a store of this process is open for {folder}, and two would remove each other's checkpoints: "
            "close it first (store.close()), or give this run a folder of its own"
        )
    return (
        f"another run writes its checkpoints to {folder}: {who}. Give this run a folder of its own, or end "
        "that one; its lock is free as soon as it has ended. Reading (list, newest, best, load) needs no lock"
    )
