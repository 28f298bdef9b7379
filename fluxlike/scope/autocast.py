"""torch's autocast, of the processor and of the accelerator that the machine has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import cache

import torch

__all__ = ["autocast_dtypes", "autocast_now", "device_types", "is_autocast", "without_autocast"]


@cache
def device_types() -> tuple[str, ...]:
    """What may be under autocast here: torch knows one accelerator a machine, and casts for no other."""
    accelerator = torch.accelerator.current_accelerator()
    return ("cpu",) if accelerator is None else ("cpu", accelerator.type)


def is_autocast() -> bool:
    """Whether autocast is on, for any device."""
    for device in device_types():  # noqa: SIM110 — every step of an optimiser asks, and a loop costs less
        if torch.is_autocast_enabled(device):
            return True
    return False


def autocast_dtypes() -> tuple[torch.dtype | None, ...]:
    """What autocast computes in, device by device; None for one without, and nothing where all are."""
    if not is_autocast():
        return ()
    return tuple(
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        for device in device_types()
    )


@contextmanager
def without_autocast() -> Iterator[None]:
    """A context in which nothing is under autocast."""
    with ExitStack() as stack:
        for device in device_types():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def autocast_now() -> Callable[[], AbstractContextManager[None]]:
    """Autocast as it is at this moment: makes contexts to run in later as one does now."""
    settings = [
        (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        for device in device_types()
    ]
    cached = torch.is_autocast_cache_enabled()

    @contextmanager
    def again() -> Iterator[None]:
        with ExitStack() as stack:
            for setting in settings:
                stack.enter_context(torch.autocast(*setting, cached))
            yield

    return again
