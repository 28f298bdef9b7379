"""Rows of the table of layers: convolutions and their transposes."""

from __future__ import annotations

from layer_row import Row, floats
from torch import Tensor, nn

import fluxlike as fl


class Cut(nn.Module):
    """Takes so many entries away at the start of the last axis."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.before :]


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
    Row(
        "Conv with uneven pads",
        lambda: fl.Conv((2, 4), 2, 3, stride=2, pad=((1, 0), (2, 1))),
        lambda: nn.Sequential(nn.ZeroPad2d((2, 1, 1, 0)), nn.Conv2d(2, 3, (2, 4), 2)),
        floats(3, 2, 4, 5),
        "Conv((2, 4), 2, 3, stride=2, pad=((1, 0), (2, 1)))  # 51 parameters",
        refused=((3, 3, 4, 5),),
        wanted=r"Conv takes the shape \(N, 2, H, W\), found {}",
    ),
    Row(
        "Conv with SamePad",
        lambda: fl.Conv((5,), 2, 3, pad=fl.SamePad(), dilation=2),
        lambda: nn.Conv1d(2, 3, 5, padding="same", dilation=2),
        floats(3, 2, 9),
        "Conv((5,), 2, 3, pad=4, dilation=2)  # 33 parameters",
    ),
    Row(
        "Conv with reflected pads",
        lambda: fl.Conv((3, 3), 1, 2, pad=1, padding_mode="reflect"),
        lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"),
        floats(3, 1, 4, 3),
        "Conv((3, 3), 1, 2, pad=1, padding_mode='reflect')  # 20 parameters",
    ),
    Row(
        "Conv with circular pads",
        lambda: fl.Conv((3,), 1, 2, pad=2, padding_mode="circular"),
        lambda: nn.Conv1d(1, 2, 3, padding=2, padding_mode="circular"),
        floats(3, 1, 4),
        "Conv((3,), 1, 2, pad=2, padding_mode='circular')  # 8 parameters",
    ),
    Row(
        "Conv with replicated pads",
        lambda: fl.Conv((3, 2, 1), 1, 2, pad=(1, 1, 0), padding_mode="replicate"),
        lambda: nn.Conv3d(1, 2, (3, 2, 1), padding=(1, 1, 0), padding_mode="replicate"),
        floats(2, 1, 3, 3, 2),
        "Conv((3, 2, 1), 1, 2, pad=(1, 1, 0), padding_mode='replicate')  # 14 parameters",
    ),
    Row(
        "DepthwiseConv",
        lambda: fl.DepthwiseConv((3, 3), 2, 4, fl.relu, pad=1),
        lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.ReLU()),
        floats(3, 2, 4, 4),
        "Conv((3, 3), 2, 4, relu, pad=1, groups=2)  # 40 parameters",
        refused=((3, 4, 4, 4),),
        wanted=r"Conv takes the shape \(N, 2, H, W\), found {}",
    ),
    Row(
        "ConvTranspose 1-d",
        lambda: fl.ConvTranspose((3,), 2, 4, fl.tanh, stride=2, pad=1, outpad=1),
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 4, 3, 2, 1, 1), nn.Tanh()),
        floats(3, 2, 4),
        "ConvTranspose((3,), 2, 4, tanh, stride=2, pad=1, outpad=1)  # 28 parameters",
        refused=((3, 4, 4), (2, 4)),
        wanted=r"ConvTranspose takes the shape \(N, 2, L\), found {}",
    ),
    Row(
        "ConvTranspose 2-d",
        lambda: fl.ConvTranspose(
            (3, 2), 4, 2, stride=(2, 1), pad=(0, 1), dilation=(1, 2), groups=2, bias=False
        ),
        lambda: nn.ConvTranspose2d(4, 2, (3, 2), (2, 1), (0, 1), dilation=(1, 2), groups=2, bias=False),
        floats(3, 4, 3, 4),
        "ConvTranspose((3, 2), 4, 2, stride=(2, 1), pad=(0, 1), dilation=(1, 2), groups=2, bias=False)"
        "  # 24 parameters",
        refused=((3, 2, 3, 4), (3, 3, 4, 4)),
        wanted=r"ConvTranspose takes the shape \(N, 4, H, W\), found {}",
    ),
    Row(
        "ConvTranspose 3-d",
        lambda: fl.ConvTranspose((2, 2, 2), 1, 2, stride=2),
        lambda: nn.ConvTranspose3d(1, 2, 2, 2),
        floats(2, 1, 2, 2, 3),
        "ConvTranspose((2, 2, 2), 1, 2, stride=2)  # 18 parameters",
    ),
    Row(
        "ConvTranspose with SamePad",
        lambda: fl.ConvTranspose((5,), 2, 3, stride=2, pad=fl.SamePad()),
        lambda: nn.Sequential(nn.ConvTranspose1d(2, 3, 5, 2, 1), Cut(1)),
        floats(3, 2, 4),
        "ConvTranspose((5,), 2, 3, stride=2, pad=((2, 1),))  # 33 parameters",
    ),
]
