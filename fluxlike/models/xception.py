"""Xception: residual blocks of separable convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import identity, relu
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv, DepthwiseConv
from fluxlike.layers.pool import MaxPool
from fluxlike.models.blocks import conv_norm, depth_rates
from fluxlike.models.classifier import Classifier, pooled_classifier
from fluxlike.models.configurations import require_counts
from fluxlike.models.origins import Origin
from fluxlike.models.residual import Residual

__all__ = ["Xception", "XceptionConfig"]


@dataclass(frozen=True)
class XceptionConfig:
    """What an Xception is made of.

    Attributes:
        stem: channels of the two convolutions before the blocks. (default: (32, 64))
        entry: channels of the blocks of the entry flow, each of which halves the size.
            (default: (128, 256, 728))
        middle: blocks of the middle flow. (default: 8)
        exit: channels of the exit flow's block, which halves the size. (default: 1024)
        last: channels of the two separable convolutions after the blocks. (default: (1536, 2048))

    Raises:
        ValueError: a number that is none, or a tuple of another length.
    """

    stem: tuple[int, int] = (32, 64)
    entry: tuple[int, ...] = (128, 256, 728)
    middle: int = 8
    exit: int = 1024
    last: tuple[int, int] = (1536, 2048)

    def __post_init__(self) -> None:
        require_counts("XceptionConfig", shape=(2,), stem=self.stem, last=self.last)
        require_counts("XceptionConfig", shape=(None,), entry=self.entry)
        require_counts("XceptionConfig", exit=self.exit)
        require_counts("XceptionConfig", least=0, middle=self.middle)


XCEPTION = XceptionConfig()

ORIGINS = (
    Origin(
        "timm",
        (
            (r"^(block\d+\.)", r"backbone.\1"),
            (r"^conv(\d)\.", r"backbone.conv\1.conv."),
            (r"^bn(\d)\.", r"backbone.conv\1.norm."),
            (r"^fc\.", "classifier.fc."),
            (r"\.rep\.", ".branch."),
            (r"\.skip\.", ".shortcut.conv."),
            (r"\.skipbn\.", ".shortcut.norm."),
        ),
    ),
)


def _separable(inputs: int, outputs: int) -> Chain:
    """Places by a 3×3 of each channel, then channels by a 1×1, nothing between."""
    return Chain(
        conv1=DepthwiseConv((3, 3), inputs, inputs, pad=1, bias=False, init=kaiming_normal),
        pointwise=Conv((1, 1), inputs, outputs, bias=False, init=kaiming_normal),
    )


def _block(channels: tuple[int, ...], stride: int, drop_path: float, *, first: bool = False) -> Residual:
    """Separable convolutions from each of `channels` to the next, with a relu before all but the `first`."""
    layers: list[Callable[[Any], Tensor]] = []
    for inputs, outputs in pairwise(channels):
        layers += [relu, _separable(inputs, outputs), BatchNorm(outputs)]
    if stride > 1:
        layers.append(MaxPool((3, 3), stride=stride, pad=1))
    same = stride == 1 and channels[0] == channels[-1]
    shortcut = identity if same else conv_norm(1, channels[0], channels[-1], identity, stride=stride)
    return Residual(Chain(*layers[first:]), shortcut, drop_path=drop_path)


def Xception(
    config: XceptionConfig = XCEPTION,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.5,
    drop_path: float = 0.0,
) -> Classifier:
    """Inception taken to its end: channels and places are convolved apart (Chollet 2016, arXiv 1610.02357).

    Args:
        config: channels of one's own. (default: the published network)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0.5)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 7×7, output: (N, nclasses).

    Raises:
        TypeError: `config` is no XceptionConfig.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.Xception(nclasses=10)
        >>> model.backbone(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 2048, 2, 2])
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    if not isinstance(config, XceptionConfig):
        raise TypeError(
            f"Xception takes an XceptionConfig, found {config!r}; write Xception() for the published network"
        )
    require_counts("Xception", inchannels=inchannels, nclasses=nclasses)
    (early, stem), (late, features) = config.stem, config.last
    ends = (stem, *config.entry)
    wide = ends[-1]
    shapes = [
        *(((a, b, b), 2) for a, b in pairwise(ends)),
        *[((wide, wide, wide, wide), 1)] * config.middle,
        ((wide, wide, config.exit), 2),
    ]
    rates = depth_rates(drop_path, len(shapes))
    blocks = {
        f"block{i + 1}": _block(channels, stride, rate, first=i == 0)
        for i, ((channels, stride), rate) in enumerate(zip(shapes, rates, strict=True))
    }
    backbone = Chain(
        conv1=conv_norm(3, inchannels, early, stride=2, pad=0),
        conv2=conv_norm(3, early, stem, pad=0),
        **blocks,
        conv3=Chain(conv=_separable(config.exit, late), norm=BatchNorm(late, relu)),
        conv4=Chain(conv=_separable(late, features), norm=BatchNorm(features, relu)),
    )
    return Classifier(backbone, pooled_classifier(features, nclasses, dropout), origins=ORIGINS)
