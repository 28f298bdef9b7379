"""Ctrl-C: the first lets the step end, the second stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interrupt"]


class Interrupt:
    """A context in which the first Ctrl-C is noted, and the next raises KeyboardInterrupt as ever.

    Only in the main thread, and only if nobody else handles the signal.

    Attributes:
        asked: whether Ctrl-C was pressed.
    """

    _pressed = False
    _before: Any = None
    _outer: Interrupt | None = None

    @property
    def asked(self) -> bool:
        return self._pressed or (self._outer is not None and self._outer.asked)

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            handler = signal.getsignal(signal.SIGINT)
            if handler is signal.default_int_handler:
                self._before = signal.signal(signal.SIGINT, self._noted)
            elif isinstance(getattr(handler, "__self__", None), Interrupt):  # of the fit around this one
                self._outer = handler.__self__  # type: ignore[union-attr]
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _noted(self, number: int, frame: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True
