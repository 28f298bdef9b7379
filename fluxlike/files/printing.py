"""What stands in a file, in print."""

from __future__ import annotations

__all__ = ["shown"]


def shown(name: object, /) -> str:
    """A name from a file in print: escaped, and not longer than a line."""
    text = repr(name)
    return text if len(text) <= 100 else f"{text[:80]}… ({len(text)} characters)"
