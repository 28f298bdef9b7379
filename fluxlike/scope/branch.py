"""Keeping the assignments of a part of a function apart: of one branch, or of one turn of a loop."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fluxlike.scope.assigned import _frames, _Replayed

__all__ = ["Apart"]


class Apart:
    """Inside a ``with`` statement, what is assigned goes no further than this object.

    `current` reads the values of outside until something is assigned inside.
    """

    def __enter__(self) -> Apart:
        self._frames = tuple(map(_Replayed, _frames.get()))
        self._before = [dict(frame.values) for frame in self._frames]
        self._token = _frames.set(self._frames)
        return self

    def __exit__(self, *error: Any) -> None:
        _frames.reset(self._token)

    def put(self, buffer: Tensor, value: Tensor) -> None:
        """Give a buffer a newest value, without assigning it."""
        for frame, before in zip(self._frames, self._before, strict=True):
            if frame.origin(buffer) is buffer:
                frame.values[id(buffer)] = before[id(buffer)] = value

    def assigned(self) -> list[tuple[Tensor, Tensor]]:
        """Each buffer that was assigned inside, with its newest value."""
        return [
            (frame._origin[key], value)
            for frame, before in zip(self._frames, self._before, strict=True)
            for key, value in frame.values.items()
            if before.get(key) is not value
        ]
