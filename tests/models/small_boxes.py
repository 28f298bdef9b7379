"""Boxes for tests."""

from __future__ import annotations

import torch


def random_boxes(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    low, size = torch.rand(2, *shape, 2, generator=generator, dtype=dtype) * 4
    return torch.cat((low, low + size + 0.1), -1)
