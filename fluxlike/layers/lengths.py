"""The lengths of the sequences of a batch, as a tensor (N,) of integers in any order, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fluxlike._private.tracing import readable
from fluxlike.placement.numbers import INTEGERS

__all__ = ["inside", "require_inside", "require_lengths"]


def require_lengths(
    name: str, lengths: Any, count: int, least: int, most: int, *, instead: str | None = None
) -> None:
    """Refuse what is not one length a sequence; values are looked at where no device is waited for.

    No list is taken, since under `jit` each one would be a trace of its own.

    Args:
        name: the layer, for errors.
        lengths: (count,), integers.
        count: how many sequences there are.
        least: the smallest length.
        most: the greatest.
        instead: what else the caller may have meant to write, for errors.

    Raises:
        TypeError: no tensor of integers.
        ValueError: another shape, or a value outside `least` to `most`.
    """
    hint = f", or {instead}" if instead else ""
    if not isinstance(lengths, Tensor) or lengths.dtype not in INTEGERS:
        found = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise TypeError(
            f"{name} takes lengths as a tensor of integers, found {found}; write torch.tensor([…]){hint}"
        )
    if lengths.shape != (count,):
        raise ValueError(
            f"{name} takes one length a sequence, ({count},) here, found {tuple(lengths.shape)}{hint}"
        )
    if readable(lengths):
        require_inside(name, lengths, least, most)


def require_inside(name: str, lengths: Tensor, least: int, most: int) -> None:
    """Refuse lengths outside a range.

    Raises:
        ValueError: a value outside `least` to `most`.
    """
    if not lengths.numel():
        return
    low, high = (int(v) for v in torch.aminmax(lengths))
    if low < least or high > most:
        raise ValueError(f"{name} takes lengths from {least} to {most} here, found {low} to {high}")


def inside(lengths: Tensor, steps: int, device: torch.device) -> Tensor:
    """Which steps are part of which sequence, (N, L)."""
    return torch.arange(steps, device=device) < lengths.to(device)[:, None]
