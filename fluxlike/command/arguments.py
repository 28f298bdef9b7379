"""What the arguments of several commands have in common."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["Subparsers", "add_json", "count"]

Subparsers = argparse._SubParsersAction  # what `add_subparsers` returns has no public name


def add_json(parser: Any, /) -> None:
    """Let a command take ``--json``."""
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, for programs")


def count(text: str, /) -> int:
    """A whole number of at least 1, as a ``type`` of argparse.

    Raises:
        argparse.ArgumentTypeError: it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1")
    return int(text)
