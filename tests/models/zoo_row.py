"""One row of the table that every model for images is held to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["ZooRow"]


class ZooRow(NamedTuple):
    """A model, as small as it can be.

    Attributes:
        name: of the test.
        make: the model, from inchannels, nclasses, and what `rates` names.
        size: height and width of images that it takes; small.
        rates: of "dropout" and "drop_path", what it has.
    """

    name: str
    make: Callable[..., Any]
    size: int
    rates: tuple[str, ...] = ("dropout", "drop_path")
