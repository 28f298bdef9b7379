"""What commands print: lines, in colours where rich is installed and a terminal shows them."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

__all__ = ["Line", "ReaderLeft", "escaped", "one_line", "show", "show_json"]


class ReaderLeft(Exception):
    """Who read the output has closed it."""


class Line(NamedTuple):
    """A line and how it looks on a terminal: a style of rich."""

    text: str
    style: str = ""


def show(lines: Iterable[Line], /) -> None:
    """Write lines to standard output.

    Raises:
        ReaderLeft: it was closed.
    """
    write = _in_colours() if _is_colourful() else _plain
    try:
        for line in lines:
            write(line)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderLeft from None


def show_json(value: Any, /) -> None:
    """Write a value to standard output as JSON.

    Raises:
        ReaderLeft: standard output was closed.
    """
    show(Line(text) for text in json.dumps(value, indent=2, allow_nan=False).splitlines())


def _is_colourful() -> bool:
    return sys.stdout.isatty() and importlib.util.find_spec("rich") is not None


def _in_colours() -> Any:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    return lambda line: console.print(Text(_encodable(line.text), line.style), soft_wrap=True)


def _plain(line: Line) -> None:
    print(_encodable(line.text))


def _encodable(text: str) -> str:
    """Text with escapes for what the terminal's encoding lacks."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def escaped(text: str, /) -> str:
    """Text from elsewhere, with what moves or colours a terminal in escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str, /) -> str:
    """Text of several lines in one."""
    return escaped(" ".join(text.split()))
