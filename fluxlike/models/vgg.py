"""VGG: stages of 3×3 convolutions, with or without batch normalisation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import relu
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.pool import MaxPool
from fluxlike.models.blocks import conv_norm
from fluxlike.models.classifier import Classifier, hidden_classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin

__all__ = ["VGG", "VGGConfig"]


@dataclass(frozen=True)
class VGGConfig:
    """What a VGG is made of.

    Attributes:
        stages: pairs of how many convolutions a stage has, and their channels. A pool that halves the size
            follows each stage.
        hidden: features of each hidden layer of the classifier. (default: 4096)

    Raises:
        ValueError: there is no stage, or a number that is none.
    """

    stages: tuple[tuple[int, int], ...]
    hidden: int = 4096

    def __post_init__(self) -> None:
        require_counts("VGGConfig", shape=(None, 2), stages=self.stages)
        require_counts("VGGConfig", hidden=self.hidden)


VGGS = {
    11: VGGConfig(((1, 64), (1, 128), (2, 256), (2, 512), (2, 512))),
    13: VGGConfig(((2, 64), (2, 128), (2, 256), (2, 512), (2, 512))),
    16: VGGConfig(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))),
    19: VGGConfig(((2, 64), (2, 128), (4, 256), (4, 512), (4, 512))),
}


def VGG(
    depth: int | VGGConfig = 16,
    *,
    batchnorm: bool = False,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.5,
) -> Classifier:
    """A network of 3×3 convolutions (Simonyan & Zisserman 2014, arXiv 1409.1556).

    Args:
        depth: 11, 13, 16 or 19, or a configuration of one's own. (default: 16)
        batchnorm: whether a BatchNorm follows each convolution, which the paper did not know yet.
            (default: False)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature of a hidden layer is dropped. (default: 0.5)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 32 × 32, output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth.
        LayerError: from a call: the images are too small.

    Example:
        >>> import torch, fluxlike as fl
        >>> with torch.device("meta"):
        ...     model = fl.models.VGG(16, batchnorm=True)
        >>> sum(x.numel() for x in fl.trainables(model))
        138365992
        >>> model.backbone(torch.empty(2, 3, 224, 224, device="meta")).shape
        torch.Size([2, 512, 7, 7])
    """
    config = configuration("VGG", VGGS, depth)
    require_counts("VGG", inchannels=inchannels, nclasses=nclasses)
    # A norm makes the bias useless, but the published weights have one.
    convolution = partial(conv_norm, 3, bias=True) if batchnorm else _convolution
    steps: dict[str, Any] = {}
    inputs = inchannels
    for n, (depth_of_stage, channels) in enumerate(config.stages, 1):
        widths = (inputs, *[channels] * (depth_of_stage - 1))
        steps[f"stage{n}"] = Chain(*(convolution(width, channels) for width in widths))
        steps[f"pool{n}"] = MaxPool((2, 2))
        inputs = channels
    classifier = hidden_classifier(7, inputs, config.hidden, nclasses, dropout)
    origin = Origin("torchvision", tuple(_rules(config, batchnorm)))
    return Classifier(Chain(**steps), classifier, origins=(origin,))


def _convolution(inputs: int, channels: int) -> Conv:
    return Conv((3, 3), inputs, channels, relu, pad=1, init=kaiming_normal)


def _rules(config: VGGConfig, batchnorm: bool) -> Iterator[tuple[str, str]]:
    """torchvision counts convolutions, norms, activations and pools in one row."""
    i = 0
    for n, (depth, _) in enumerate(config.stages, 1):
        for k in range(depth):
            place = f"backbone.stage{n}.{k}."
            if batchnorm:
                yield rf"^features\.{i}\.", f"{place}conv."
                yield rf"^features\.{i + 1}\.", f"{place}norm."
            else:
                yield rf"^features\.{i}\.", place
            i += 3 if batchnorm else 2
        i += 1
    for n, i in enumerate((0, 3, 6), 1):
        yield rf"^classifier\.{i}\.", f"classifier.fc{n}."
