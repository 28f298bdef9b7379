"""Rows of the table of layers: pools."""

from __future__ import annotations

from layer_row import Row, floats
from torch import nn

import fluxlike as fl

ROWS = [
    Row(
        "MaxPool",
        lambda: fl.MaxPool((2, 3), stride=2, pad=(1, 0)),
        lambda: nn.MaxPool2d((2, 3), 2, (1, 0)),
        floats(3, 2, 6, 7),
        "MaxPool((2, 3), stride=2, pad=(1, 0))",
        refused=((2, 6, 7), (3, 2, 6)),
        wanted=r"MaxPool takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "MeanPool",
        lambda: fl.MeanPool((2, 2), pad=1),
        lambda: nn.AvgPool2d(2, 2, 1),
        floats(3, 2, 4, 4),
        "MeanPool((2, 2), pad=1)",
        refused=((2, 4, 4),),
        wanted=r"MeanPool takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "AdaptiveMaxPool",
        lambda: fl.AdaptiveMaxPool((2, 3)),
        lambda: nn.AdaptiveMaxPool2d((2, 3)),
        floats(3, 2, 5, 7),
        "AdaptiveMaxPool((2, 3))",
        refused=((2, 5, 7),),
        wanted=r"AdaptiveMaxPool takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "AdaptiveMeanPool",
        lambda: fl.AdaptiveMeanPool((3,)),
        lambda: nn.AdaptiveAvgPool1d(3),
        floats(3, 2, 7),
        "AdaptiveMeanPool((3,))",
        refused=((2, 7),),
        wanted=r"AdaptiveMeanPool takes the shape \(N, C, L\), found {}",
    ),
    Row(
        "GlobalMaxPool",
        fl.GlobalMaxPool,
        lambda: nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()),
        floats(3, 2, 4, 5),
        "GlobalMaxPool()",
        refused=((3, 2),),
        wanted=r"GlobalMaxPool takes the shape \(N, C, …\) with at least one spatial axis, found {}",
    ),
    Row(
        "GlobalMeanPool",
        fl.GlobalMeanPool,
        lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        floats(3, 2, 4, 5),
        "GlobalMeanPool()",
        refused=((3, 2),),
        wanted=r"GlobalMeanPool takes the shape \(N, C, …\) with at least one spatial axis, found {}",
    ),
]
