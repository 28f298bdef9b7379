"""DenseNet: layers that each see the features of all before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import relu
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain, SkipConnection
from fluxlike.layers.conv import Conv
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.pool import MaxPool, MeanPool
from fluxlike.models.blocks import conv_norm
from fluxlike.models.classifier import Classifier, pooled_classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin

__all__ = ["DenseNet", "DenseNetConfig"]


@dataclass(frozen=True)
class DenseNetConfig:
    """What a densely connected network is made of.

    Attributes:
        depths: layers of each block.
        growth: channels that a layer adds. (default: 32)
        channels: of the first convolution. (default: 64)
        bottleneck: how many times `growth` the channels inside a layer are. (default: 4)
        compression: the share of its channels that a transition between two blocks keeps. (default: 0.5)

    Raises:
        ValueError: a block without layers, a number that is none, or a compression outside (0, 1].
    """

    depths: tuple[int, ...]
    growth: int = 32
    channels: int = 64
    bottleneck: int = 4
    compression: float = 0.5

    def __post_init__(self) -> None:
        require_counts("DenseNetConfig", shape=(None,), depths=self.depths)
        require_counts("DenseNetConfig", growth=self.growth, channels=self.channels)
        require_counts("DenseNetConfig", bottleneck=self.bottleneck)
        if not 0 < self.compression <= 1:
            raise ValueError(f"DenseNetConfig(compression={self.compression!r}): write a share, such as 0.5")


DENSENETS = {
    121: DenseNetConfig((6, 12, 24, 16)),
    161: DenseNetConfig((6, 12, 36, 24), growth=48, channels=96),
    169: DenseNetConfig((6, 12, 32, 32)),
    201: DenseNetConfig((6, 12, 48, 32)),
}

_NAMES = (
    (r"^classifier\.", "classifier.fc."),
    (r"^features\.(conv|norm)0\.", r"backbone.conv.\1."),
    (r"^features\.norm\d+\.", "backbone.norm."),
    (
        r"^features\.dense(block\d+)\.dense(layer\d+)\.(norm|conv)\.?(\d)\.",
        r"backbone.\1.\2.layer.conv\4.\3.",
    ),
    (r"^features\.(transition\d+)\.", r"backbone.\1.conv."),
)
ORIGINS = (Origin("torchvision", _NAMES), Origin("timm", _NAMES))


def DenseNet(
    depth: int | DenseNetConfig = 121,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
) -> Classifier:
    """A densely connected network (Huang et al. 2016, arXiv 1608.06993).

    Args:
        depth: 121, 161, 169 or 201, or a configuration of one's own. (default: 121)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped after each convolution but the first, and
            before the last layer; the paper's is 0.2 for data that is not augmented. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 29 × 29, output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth.
        LayerError: from a call: the images are too small.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.DenseNet(121, nclasses=10)
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> block = model.backbone["block1"]  # each of its 6 layers adds 32 channels
        >>> block(torch.zeros(2, 64, 16, 16)).shape
        torch.Size([2, 256, 16, 16])
    """
    config = configuration("DenseNet", DENSENETS, depth)
    require_counts("DenseNet", inchannels=inchannels, nclasses=nclasses)
    channels = config.channels
    steps: dict[str, Any] = {
        "conv": conv_norm(7, inchannels, channels, stride=2),
        "pool": MaxPool((3, 3), stride=2, pad=1),
    }
    for n, layers in enumerate(config.depths, 1):
        if n > 1:
            kept = int(channels * config.compression)
            steps[f"transition{n - 1}"] = Chain(
                conv=_norm_conv(1, channels, kept, dropout), pool=MeanPool((2, 2))
            )
            channels = kept
        steps[f"block{n}"] = _block(config, channels, layers, dropout)
        channels += layers * config.growth
    steps["norm"] = BatchNorm(channels, relu)
    return Classifier(Chain(**steps), pooled_classifier(channels, nclasses, dropout), origins=ORIGINS)


def _block(config: DenseNetConfig, channels: int, layers: int, dropout: float) -> Chain:
    """Layers that each add `growth` channels to those they get."""
    inside, steps = config.bottleneck * config.growth, {}
    for n in range(layers):
        layer = Chain(
            conv1=_norm_conv(1, channels + n * config.growth, inside, dropout),
            conv2=_norm_conv(3, inside, config.growth, dropout),
        )
        steps[f"layer{n + 1}"] = SkipConnection(layer, appended)
    return Chain(**steps)


def _norm_conv(kernel_size: int, inputs: int, outputs: int, dropout: float) -> Chain:
    """A norm, an activation and a convolution, in this order, and dropout where there is any."""
    steps: dict[str, Any] = {
        "norm": BatchNorm(inputs, relu),
        "conv": Conv(
            (kernel_size, kernel_size), inputs, outputs, pad=kernel_size // 2, bias=False, init=kaiming_normal
        ),
    }
    if dropout:  # a hundred layers that do nothing would take time
        steps["dropout"] = Dropout(dropout)
    return Chain(**steps)


def appended(new: Tensor, old: Tensor) -> Tensor:
    """Feature maps with the channels of new ones after the old ones'."""
    return torch.cat((old, new), 1)
