"""Batches moved to a device, on CUDA one ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from fluxlike.placement.device import to_device
from fluxlike.trees.fmap import fleaves, fmap

__all__ = ["moved", "one_ahead"]

T = TypeVar("T")


def moved(batches: Iterator[Any], device: torch.device) -> Iterator[Any]:
    """The batches on a device.

    To CUDA they are copied from pinned memory on a stream of their own, while the one before is in use.
    """
    if device.type != "cuda":
        return (to_device(batch, device) for batch in batches)
    copies = _Copies(device)
    return (copies.ready(batch) for batch in one_ahead(copies.begin(batch) for batch in batches))


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The items, each given when the next one is there; an error comes in its turn."""
    ahead: list[T] = []
    try:
        for item in items:
            if ahead:
                yield ahead.pop()
            ahead.append(item)
    except Exception:
        yield from ahead
        raise
    yield from ahead


class _Copies:
    """Copies to a CUDA device beside what it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def begin(self, batch: Any) -> tuple[Any, torch.cuda.Event]:
        """A copy of a batch that goes on, and the event of its end."""
        pinned = fmap(_pinned, batch)
        with torch.cuda.stream(self._stream):
            copy = to_device(pinned, self._device)
            return copy, self._stream.record_event()

    def ready(self, begun: tuple[Any, torch.cuda.Event]) -> Any:
        """A copied batch, for use on the current stream."""
        batch, event = begun
        current = torch.cuda.current_stream(self._device)
        current.wait_event(event)
        for x in fleaves(batch):
            if isinstance(x, Tensor) and x.device.type == "cuda":
                x.record_stream(current)  # whose work must be done before the memory is used again
        return batch


def _pinned(x: Any) -> Any:
    on_host = isinstance(x, Tensor) and x.device.type == "cpu" and not x.is_pinned()
    return x.pin_memory() if on_host else x
