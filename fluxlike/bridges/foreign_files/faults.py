"""What is wrong with a file from elsewhere, said with its name."""

from __future__ import annotations

import contextlib
import io
import os
import struct
from collections.abc import Iterator
from typing import Any

from fluxlike.files.opening import open_regular

__all__ = ["DEEPEST", "FileFault", "allowance", "open_file", "printed", "told"]

#: How deep containers may lie in one another; networks need a fraction of it, Python's stack holds more.
DEEPEST = 64
_LONGEST = 2000


class FileFault(ValueError):
    """A file that can't be read, and why: what is quoted of the file is escaped, and cut in the middle."""

    def __init__(self, text: str) -> None:
        super().__init__(printed(text))


def printed(text: str, /) -> str:
    """Text for one line of a terminal, which a file's names must not steer or fill."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]} … {text[-_LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def allowance(size: int, /) -> int:
    """How many bytes of arrays a file of a size may claim: compressed weights need less, bombs far more."""
    return 2**26 + 16 * size


def open_file(path: str | os.PathLike[str], kind: str, /) -> io.BufferedReader[io.FileIO]:
    """A plain file, open for reading.

    Raises:
        FileNotFoundError: there is nothing.
        FileFault: it is a folder, or another thing.
    """
    try:
        return io.BufferedReader(open_regular(path))
    except ValueError as error:
        raise FileFault(f"{error}: {kind}") from None


@contextlib.contextmanager
def told(path: Any, kind: str, /) -> Iterator[None]:
    """Whatever a parser raises about a damaged file, as a `FileFault` that names the file."""
    try:
        yield
    except FileFault:
        raise
    except RecursionError:
        raise FileFault(f"{path} holds containers in containers, too deep for {kind}") from None
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError),
        *(RuntimeError, SystemError, TypeError, ValueError, struct.error),
    ) as error:
        detail = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        # From None, because the cause would print what the file says as it stands.
        raise FileFault(f"{path} is damaged, or not {kind}: {detail}") from None
