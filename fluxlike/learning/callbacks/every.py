"""`every`: after how many steps a callback does something."""

from __future__ import annotations

from typing import Any

__all__ = ["checked_every"]


def checked_every(name: str, every: Any, /) -> Any:
    """A number of steps.

    Raises:
        ValueError: it is none.
    """
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"{name} has every={every!r}; write after how many steps, a whole number from 1")
    return every
