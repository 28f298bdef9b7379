"""Keeping the assignments of a part of a function apart: of one branch, or of one turn of a loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluxlike.scope import assigned

__all__ = ["Apart"]


class Apart:
    """Inside a ``with`` statement, what is assigned goes no further than this object.

    `current` reads the values of outside until something is assigned inside.
    """

    def __enter__(self) -> Apart:
        self._frames = assigned.frames_now()
        self._before = [dict(frame.values) for frame in self._frames]
        self._token = assigned.enter_frames(self._frames)
        return self

    def __exit__(self, *error: Any) -> None:
        assigned.leave(self._token)

    def put(self, buffer: Tensor, value: Tensor) -> None:
        """Give a buffer a newest value, without assigning it."""
        for frame, before in zip(self._frames, self._before, strict=True):
            if frame.origin(buffer) is buffer:
                frame.values[id(buffer)] = before[id(buffer)] = value

    def assigned(self) -> list[tuple[Tensor, Tensor]]:
        """Each buffer that was assigned inside, with its newest value."""
        return [
            (buffer, value)
            for frame, before in zip(self._frames, self._before, strict=True)
            for buffer, value in frame.newest()
            if before.get(id(buffer)) is not value
        ]
