"""The lengths of the sequences of a batch, as a tensor (N,) of integers in any order."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxlike._private import tracing

__all__ = ["inside", "require_lengths"]

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def require_lengths(name: str, lengths: Any, x: Tensor) -> None:
    """Refuse lengths that do not fit inputs (N, L, …); their values are looked at where they have any.

    Raises:
        TypeError: no tensor of integers.
        ValueError: another shape, or a value outside 1 to L.
    """
    n, steps = x.shape[:2]
    if not isinstance(lengths, Tensor) or lengths.dtype not in _INTEGERS:
        found = f"a tensor of {lengths.dtype}" if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(
            f"{name} takes lengths as a tensor of integers, found {found}; write torch.tensor([…])"
        )
    if lengths.shape != (n,):
        raise ValueError(f"{name} takes one length a sequence, ({n},) here, found {tuple(lengths.shape)}")
    if n and tracing.concrete() and not lengths.is_meta:
        low, high = (int(v) for v in torch.aminmax(lengths))
        if low < 1 or high > steps:
            raise ValueError(
                f"{name} takes lengths from 1 to {steps}, the number of steps in x; found {low} to {high}"
            )


def inside(lengths: Tensor, steps: int) -> Tensor:
    """Which steps are part of which sequence, (L, N)."""
    return torch.arange(steps, device=lengths.device)[:, None] < lengths
