"""Kinds of numbers: dtypes of 16 bits and what is computed for them, dtypes of whole numbers."""

from __future__ import annotations

import torch

__all__ = ["HALVES", "INTEGERS", "at_least_float32"]

HALVES = (torch.float16, torch.bfloat16)

#: Those that may stand for places and lengths; torch counts bools and the wider unsigned ones apart.
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def at_least_float32(dtype: torch.dtype, /) -> torch.dtype:
    """The dtype in which formulas of this one are computed: float32 for 16 bits, else itself."""
    return torch.float32 if dtype in HALVES else dtype
