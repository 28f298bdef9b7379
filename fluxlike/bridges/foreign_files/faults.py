"""What is wrong with a file from elsewhere, said with its name."""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from typing import Any

__all__ = ["DEEPEST", "FileFault", "allowance", "require_file", "told"]

#: How deep containers may lie in one another; networks need a fraction of it, Python's stack holds more.
DEEPEST = 64


class FileFault(ValueError):
    """A file that can't be read, and why."""


def allowance(size: int, /) -> int:
    """How many bytes of arrays a file of a size may claim: compressed weights need less, bombs far more."""
    return 2**26 + 16 * size


def require_file(path: str | os.PathLike[str], kind: str, /) -> None:
    """Refuse a path that is no file.

    Raises:
        FileNotFoundError: there is nothing.
        FileFault: it is a folder, or another thing.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no file {os.fspath(path)}")
    if not os.path.isfile(path):
        raise FileFault(f"{os.fspath(path)} is a folder, or no plain file; give the path of {kind}")


@contextlib.contextmanager
def told(path: Any, kind: str, /) -> Iterator[None]:
    """Whatever a parser raises about a damaged file, as a `FileFault` that names the file."""
    try:
        yield
    except FileFault:
        raise
    except RecursionError as error:
        raise FileFault(f"{path} holds containers in containers, too deep for {kind}") from error
    except (
        *(ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, OSError),
        *(RuntimeError, SystemError, TypeError, ValueError, struct.error),
    ) as error:
        detail = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise FileFault(f"{path} is damaged, or not {kind}: {detail}") from error
