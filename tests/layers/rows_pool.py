"""Rows of the table of layers: pools."""

from __future__ import annotations

import torch
from layer_row import Row, floats
from torch import Tensor, nn

import fluxlike as fl


class MeanOfWhatIsThere(nn.Module):
    """The mean over windows of 3 on an axis with one entry of padding before it, which does not count."""

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        windows = [x[..., max(i - 1, 0) : i + 2] for i in range(0, n - 1, 3)]
        return torch.stack([window.mean(-1) for window in windows], -1)


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
        "MaxPool with dilation, over the end",
        lambda: fl.MaxPool((2,), stride=3, dilation=2, ceil_mode=True),
        lambda: nn.MaxPool1d(2, 3, dilation=2, ceil_mode=True),
        floats(3, 2, 6),
        "MaxPool((2,), stride=3, dilation=2, ceil_mode=True)",
        refused=((2, 6),),
        wanted=r"MaxPool takes the shape \(N, C, L\), found {}",
    ),
    Row(
        "MaxPool with SamePad",
        lambda: fl.MaxPool((2, 2, 3), pad=fl.SamePad()),
        lambda: nn.Sequential(
            nn.ConstantPad3d((1, 1, 1, 0, 1, 0), -torch.inf), nn.MaxPool3d((2, 2, 3), (2, 2, 3))
        ),
        floats(2, 2, 3, 4, 5),
        "MaxPool((2, 2, 3), pad=((1, 0), (1, 0), (1, 1)))",
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
        "MeanPool without the pads, over the end",
        lambda: fl.MeanPool((3,), stride=2, pad=1, ceil_mode=True, count_include_pad=False),
        lambda: nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False),
        floats(3, 2, 6),
        "MeanPool((3,), stride=2, pad=1, ceil_mode=True, count_include_pad=False)",
    ),
    Row(
        "MeanPool over the end",
        lambda: fl.MeanPool((2, 1, 2), pad=(1, 0, 0), ceil_mode=True),
        lambda: nn.AvgPool3d((2, 1, 2), padding=(1, 0, 0), ceil_mode=True),
        floats(2, 1, 4, 2, 3),
        "MeanPool((2, 1, 2), pad=(1, 0, 0), ceil_mode=True)",
    ),
    Row(
        "MeanPool with uneven pads",
        lambda: fl.MeanPool((2, 3), pad=((1, 0), (0, 1))),
        lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 1, 0)), nn.AvgPool2d((2, 3))),
        floats(3, 2, 3, 5),
        "MeanPool((2, 3), pad=((1, 0), (0, 1)))",
    ),
    Row(
        "MeanPool without uneven pads",
        lambda: fl.MeanPool((3,), pad=(1, 0), count_include_pad=False),
        MeanOfWhatIsThere,
        floats(3, 2, 8),
        "MeanPool((3,), pad=((1, 0),), count_include_pad=False)",
    ),
    Row(
        "LPPool",
        lambda: fl.LPPool((2, 3), stride=2),
        lambda: nn.LPPool2d(2, (2, 3), 2),
        floats(3, 2, 4, 7),
        "LPPool((2, 3), stride=2)",
        refused=((3, 2, 4),),
        wanted=r"LPPool takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "LPPool of another power, padded",
        lambda: fl.LPPool((3,), 4, pad=fl.SamePad()),
        lambda: nn.Sequential(nn.ZeroPad1d(1), nn.LPPool1d(4, 3)),
        floats(3, 2, 6),
        "LPPool((3,), p=4, pad=1)",
        half=16,
    ),
    Row(
        "LPPool 3-d",
        lambda: fl.LPPool((2, 1, 2), ceil_mode=True),
        lambda: nn.LPPool3d(2, (2, 1, 2), ceil_mode=True),
        floats(2, 2, 3, 2, 2),
        "LPPool((2, 1, 2), ceil_mode=True)",
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
