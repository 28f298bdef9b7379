"""The factor of focal losses: what is easy counts less."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["focus"]


def focus(p: Tensor, gamma: float, /) -> Tensor:
    """``(1 - p)^gamma`` (Lin et al. 2017, arXiv 1708.02002), with a finite derivative at p = 1 too."""
    return (1 - p).clamp_min(torch.finfo(p.dtype).eps) ** gamma
