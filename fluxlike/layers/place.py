"""Where in a model a call is being made: read off the stack, when an error is to say it."""

from __future__ import annotations

import inspect
from types import FrameType
from typing import Any, NamedTuple

from fluxlike.trees.functor import spec_of
from fluxlike.trees.paths import children

__all__ = ["Place", "here", "place_of"]


class Place(NamedTuple):
    """The place of the layer whose method is running.

    Attributes:
        layer: the id of the layer, 0 if none is running.
        path: its path in the outermost model that is being called, empty if that is the layer itself.
        around: the ids of the layer and of the objects around it that `path` goes through.
    """

    layer: int
    path: str
    around: frozenset[int]


def place_of(frame: FrameType | None) -> Place:
    """The place of the innermost layer that is running in a frame or around it.

    It is found through classes of the user's own too: an object further out counts where it holds the one
    before. Nothing is recorded while models run.
    """
    path = ""
    around: list[int] = []
    while frame is not None:
        node = _self(frame)
        if node is not None and id(node) not in around:
            step = _path_in(node, around[-1]) if around else ""
            if step is not None:
                path = step + path
                around.append(id(node))
        frame = frame.f_back
    return Place(around[0] if around else 0, path, frozenset(around))


def here() -> FrameType | None:
    """The frame of whoever called the caller."""
    frame = inspect.currentframe()
    return frame and frame.f_back and frame.f_back.f_back


def _self(frame: FrameType) -> Any:
    """The object of a registered class whose method a frame is, or None."""
    code = frame.f_code
    if not code.co_argcount or code.co_name == "__init__":  # where attributes are still missing
        return None
    node = frame.f_locals.get(code.co_varnames[0])
    return node if not isinstance(node, type) and spec_of(type(node)) is not None else None


def _path_in(node: Any, wanted: int) -> str | None:
    """The path of the object with an id below a node, None where it is not there."""
    for step, child in children(node):
        if id(child) == wanted:
            return step.text
        below = _path_in(child, wanted)
        if below is not None:
            return step.text + below
    return None
