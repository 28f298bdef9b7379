"""Rows of the table of layers: changing the size."""

from __future__ import annotations

import torch
from layer_row import Row, floats
from torch import Tensor, nn

import fluxlike as fl


class Places(nn.Module):
    """What PixelShuffle does on one axis, one place after the other."""

    def __init__(self, r: int) -> None:
        super().__init__()
        self.r = r

    def forward(self, x: Tensor) -> Tensor:
        n, channels, length = x.shape
        y = x.new_empty(n, channels // self.r, length * self.r)
        for i in range(self.r):
            y[:, :, i :: self.r] = x[:, i :: self.r]
        return y


class Volumes(nn.Module):
    """What PixelShuffle(2) does on three axes, or what undoes it, one place after the other."""

    def __init__(self, undo: bool) -> None:
        super().__init__()
        self.undo = undo

    def forward(self, x: Tensor) -> Tensor:
        n, channels, *size = x.shape
        if self.undo:
            parts = [x[:, :, i::2, j::2, k::2] for i in (0, 1) for j in (0, 1) for k in (0, 1)]
            return torch.stack(parts, 2).flatten(1, 2)
        y = x.new_empty(n, channels // 8, *(2 * s for s in size))
        places = ((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1))
        for number, (i, j, k) in enumerate(places):
            y[:, :, i::2, j::2, k::2] = x[:, number::8]
        return y


ROWS = [
    Row(
        "Upsample",
        lambda: fl.Upsample(2),
        lambda: nn.Upsample(scale_factor=2),
        floats(3, 2, 3, 4),
        "Upsample(2)",
        refused=((3, 2), (3, 2, 1, 1, 1, 1)),
        wanted=r"Upsample takes the shape \(N, C, …\) with one to three spatial axes, found {}",
    ),
    Row(
        "Upsample, one factor an axis",
        lambda: fl.Upsample((2, 1.5), "bilinear"),
        lambda: nn.Upsample(scale_factor=(2, 1.5), mode="bilinear"),
        floats(3, 2, 3, 4),
        "Upsample((2, 1.5), mode='bilinear')",
        refused=((3, 2, 3),),
        wanted=r"Upsample takes the shape \(N, C, H, W\), found {}",
    ),
    Row(
        "Upsample to a size, corners aligned",
        lambda: fl.Upsample(size=(5, 3), mode="bilinear", align_corners=True),
        lambda: nn.Upsample((5, 3), mode="bilinear", align_corners=True),
        floats(3, 2, 3, 4),
        "Upsample(size=(5, 3), mode='bilinear', align_corners=True)",
    ),
    Row(
        "Upsample linear",
        lambda: fl.Upsample(3, "linear"),
        lambda: nn.Upsample(scale_factor=3, mode="linear"),
        floats(3, 2, 4),
        "Upsample(3, mode='linear')",
        refused=((3, 2, 4, 4),),
        wanted=r"Upsample takes the shape \(N, C, L\), found {}",
    ),
    Row(
        "Upsample bicubic",
        lambda: fl.Upsample(2, "bicubic"),
        lambda: nn.Upsample(scale_factor=2, mode="bicubic"),
        floats(3, 1, 3, 4),
        "Upsample(2, mode='bicubic')",
    ),
    Row(
        "Upsample trilinear",
        lambda: fl.Upsample(2, "trilinear", align_corners=True),
        lambda: nn.Upsample(scale_factor=2, mode="trilinear", align_corners=True),
        floats(2, 1, 2, 3, 2),
        "Upsample(2, mode='trilinear', align_corners=True)",
    ),
    Row(
        "PixelShuffle",
        lambda: fl.PixelShuffle(2),
        lambda: nn.PixelShuffle(2),
        floats(3, 8, 2, 3),
        "PixelShuffle(2)",
        refused=((3, 6, 2, 3),),
        wanted=r"PixelShuffle\(2\) takes the shape \(N, C·4, H, W\), found {}",
    ),
    Row(
        "PixelShuffle 1-d",
        lambda: fl.PixelShuffle(3),
        lambda: Places(3),
        floats(3, 6, 4),
        "PixelShuffle(3)",
        refused=((3, 5, 4), (3, 8, 2, 2)),
        wanted=r"PixelShuffle\(3\) takes the shape \(N, C·\d, .*\), found {}",
    ),
    Row(
        "PixelShuffle 3-d",
        lambda: fl.PixelShuffle(2),
        lambda: Volumes(False),
        floats(2, 16, 1, 2, 2),
        "PixelShuffle(2)",
        refused=((3, 8),),
        wanted=r"PixelShuffle takes the shape \(N, C, …\) with one to three spatial axes, found {}",
    ),
    Row(
        "PixelUnshuffle",
        lambda: fl.PixelUnshuffle(2),
        lambda: nn.PixelUnshuffle(2),
        floats(3, 2, 4, 6),
        "PixelUnshuffle(2)",
        refused=((3, 2, 4, 5),),
        wanted=r"PixelUnshuffle\(2\) takes the shape \(N, C, H, W\) with .* that 2 divides, found {}",
    ),
    Row(
        "PixelUnshuffle 3-d",
        lambda: fl.PixelUnshuffle(2),
        lambda: Volumes(True),
        floats(2, 2, 2, 4, 2),
        "PixelUnshuffle(2)",
    ),
]
