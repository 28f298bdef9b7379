"""Whether the code runs for one example alone, which has no statistics of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["NO_BATCH", "alone", "on_its_own"]

#: What a layer that mixes the examples of a batch says when it is to train on one alone.
NO_BATCH = (
    "it mixes the examples of a batch, so in per_example_gradient it can't train: use GroupNorm, which looks "
    "at each example alone, or pin the layer by fluxlike.testmode"
)

_alone: ContextVar[bool] = ContextVar("fluxlike_one_example_alone", default=False)


def alone() -> bool:
    """Whether this is a call for one example alone, of `per_example_gradient`."""
    return _alone.get()


@contextmanager
def on_its_own() -> Iterator[None]:
    """What is called inside gets one example alone."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)
