"""Files that appear whole, on the disk and by one rename, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["leftovers", "sync_folder", "write_whole"]

_CHUNK = 1 << 24  # bytes a write: an interrupt waits for one

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)


def write_whole(path: Path, parts: Sequence[bytes | memoryview], check: Callable[[Path], None], /) -> None:
    """Write a file beside its place and rename it there, both to the disk.

    Args:
        path: its place. A file that is there is replaced, and lends its permissions.
        parts: the bytes, in contiguous memory.
        check: is given the file before it takes its place, and raises if it is not right.

    Raises:
        OSError: it can't be written, and nothing of it is left; of a full disk, it says what was needed.
    """
    try:
        _write(path, parts, check)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        needed = sum(memoryview(part).nbytes for part in parts)
        free = shutil.disk_usage(path.parent).free
        raise OSError(
            error.errno,
            f"{error.strerror}: it needs {needed:,} bytes, {free:,} are free; what was there is as it was",
            str(path),
        ) from error


def _write(path: Path, parts: Sequence[bytes | memoryview], check: Callable[[Path], None]) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _fill(temporary, parts)
        check(temporary)
        if path.exists():
            os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what can't be removed now is found by `leftovers`
            os.unlink(temporary)


def _fill(path: Path, parts: Sequence[bytes | memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags, 0o666)
    try:
        for part in parts:
            rest = memoryview(part).cast("B")
            while rest:
                count = os.write(file, rest[:_CHUNK])
                if not count:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                rest = rest[count:]
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path, /) -> None:
    """Bring the names in a folder to the disk, where its system knows how."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(opened)


def leftovers(folder: Path, name: re.Pattern[str], /) -> list[Path]:
    """What writes that were killed left in a folder of files that are called so."""
    found = ((path, _TEMPORARY.fullmatch(path.name)) for path in sorted(folder.iterdir()))
    return [path for path, match in found if match and name.fullmatch(match["name"])]
