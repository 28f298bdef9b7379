"""Scalars that wait on a device, read from there together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Number", "Scalar", "host_numbers", "is_scalar"]

Number = bool | int | float
Scalar = Number | Tensor


def is_scalar(value: Any, /) -> bool:
    """Whether it is a number, or a 0-d tensor of real numbers."""
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_complex()
    return isinstance(value, (bool, int, float))


def host_numbers(values: Sequence[Scalar], /) -> list[Number]:
    """Numbers and 0-d tensors as numbers of Python, by one copy for each device and dtype.

    A float of 16 or 32 bits becomes the same number in 64.

    Example:
        >>> import torch
        >>> host_numbers([torch.tensor(0.5), 2, torch.tensor(3)])
        [0.5, 2, 3]
    """
    found: list[Any] = list(values)
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            groups.setdefault((value.device, value.dtype), []).append(place)
    for places in groups.values():
        numbers = torch.stack([found[place].detach() for place in places]).tolist()
        for place, number in zip(places, numbers, strict=True):
            found[place] = number
    return found
