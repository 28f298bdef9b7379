"""Rows of the table of layers: convolutions."""

from __future__ import annotations

from layer_row import Row, floats
from torch import nn

import fluxlike as fl

ROWS = [
    Row(
        "Conv 1-d",
        lambda: fl.Conv((3,), 2, 4, fl.tanh, pad=1),
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.Tanh()),
        floats(3, 2, 6),
        "Conv((3,), 2, 4, tanh, pad=1)  # 28 parameters",
        refused=((3, 3, 6), (2, 6), (3, 2, 6, 6)),
        wanted=r"Conv takes the shape \(N, 2, L\), found {}",
    ),
    Row(
        "Conv 2-d",
        lambda: fl.Conv((3, 2), 4, 2, stride=(2, 1), pad=(0, 1), dilation=(1, 2), groups=2, bias=False),
        lambda: nn.Conv2d(4, 2, (3, 2), (2, 1), (0, 1), (1, 2), groups=2, bias=False),
        floats(3, 4, 5, 5),
        "Conv((3, 2), 4, 2, stride=(2, 1), pad=(0, 1), dilation=(1, 2), groups=2, bias=False)"
        "  # 24 parameters",
        refused=((3, 2, 5, 5), (4, 5, 5), (3, 5, 5, 4)),
        wanted=r"Conv takes the shape \(N, 4, H, W\), found {}",
    ),
    Row(
        "Conv 3-d",
        lambda: fl.Conv((2, 2, 2), 1, 2),
        lambda: nn.Conv3d(1, 2, 2),
        floats(2, 1, 3, 3, 3),
        "Conv((2, 2, 2), 1, 2)  # 18 parameters",
        refused=((2, 3, 3, 3),),
        wanted=r"Conv takes the shape \(N, 1, D, H, W\), found {}",
    ),
]
