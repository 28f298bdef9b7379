"""The factor of focal losses: what is easy counts less."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_gamma", "focus"]


def focus(p: Tensor, gamma: float, /) -> Tensor:
    """``(1 - p)^gamma`` (Lin et al. 2017, arXiv 1708.02002), with a finite derivative at p = 1 too."""
    return (1 - p).clamp_min(torch.finfo(p.dtype).eps) ** gamma


def check_gamma(name: str, gamma: float, /) -> None:
    """Raise a ValueError unless `gamma` is at least 0."""
    if not gamma >= 0:
        raise ValueError(f"{name}: gamma={gamma}; write a number of at least 0")
