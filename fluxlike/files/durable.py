"""Files that appear whole, on the disk and by one rename, or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["leftovers", "require_replaceable", "sync_folder", "write_whole"]

_CHUNK = 1 << 24  # bytes a write: an interrupt waits for one

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)


def write_whole(
    path: str | os.PathLike[str],
    parts: Iterable[bytes | memoryview],
    check: Callable[[Path], None] | None = None,
    /,
) -> None:
    """Write a file beside its place and rename it there, both to the disk.

    Args:
        path: its place. A file that is there is replaced, and lends its permissions; a link stays one.
        parts: the bytes, in contiguous memory.
        check: is given the file before it takes its place, and raises if it is not right. (default: nothing)

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: a pipe, a device or a folder is in its place, and stays there.
        OSError: it can't be written, and nothing of it is left; of a full disk, it says what was needed.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {target.parent} to write {target.name} into")
    require_replaceable(target)
    sizes: list[int] = []
    views = _views(parts, sizes)
    try:
        _write(target, views, check)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        for _ in views:  # those that were not written are counted too
            pass
        free = shutil.disk_usage(target.parent).free
        raise OSError(
            error.errno,
            f"{error.strerror}: it needs {sum(sizes):,} bytes, {free:,} are free; what was there is as it "
            "was",
            str(target),
        ) from error


def require_replaceable(path: str | os.PathLike[str], /) -> None:
    """Refuse to put a file where something else is.

    Raises:
        ValueError: a pipe, a device or a folder is there.
    """
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(kind):
        what = "a folder" if stat.S_ISDIR(kind) else "a pipe or a device"
        raise ValueError(f"{path} is {what}, which a file would take the place of; give the path of a file")


def _views(parts: Iterable[bytes | memoryview], sizes: list[int]) -> Iterator[memoryview]:
    """The parts in bytes, whose sizes are noted."""
    for part in parts:
        view = memoryview(part).cast("B")
        sizes.append(len(view))
        yield view


def _write(path: Path, views: Iterable[memoryview], check: Callable[[Path], None] | None) -> None:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        _fill(temporary, views)
        if check is not None:
            check(temporary)
        if path.exists():
            os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
        sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # what can't be removed now is found by `leftovers`
            os.unlink(temporary)


def _fill(path: Path, views: Iterable[memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    file = os.open(path, flags, 0o666)
    try:
        for view in views:
            rest = view
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
