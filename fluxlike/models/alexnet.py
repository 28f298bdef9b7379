"""AlexNet: five convolutions and two hidden layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import relu
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.pool import MaxPool
from fluxlike.models.classifier import Classifier, hidden_classifier
from fluxlike.models.configurations import require_counts
from fluxlike.models.origins import Origin

__all__ = ["AlexNet", "AlexNetConfig"]

#: Kernel size, stride, pad, and whether a pool follows, of each convolution.
CONVOLUTIONS = ((11, 4, 2, True), (5, 1, 2, True), (3, 1, 1, False), (3, 1, 1, False), (3, 1, 1, True))


@dataclass(frozen=True)
class AlexNetConfig:
    """What an AlexNet is made of.

    Attributes:
        channels: of each of the five convolutions. (default: those of arXiv 1404.5997)
        hidden: features of each hidden layer of the classifier. (default: 4096)

    Raises:
        ValueError: another number of channels, or a number that is none.
    """

    channels: tuple[int, ...] = (64, 192, 384, 256, 256)
    hidden: int = 4096

    def __post_init__(self) -> None:
        require_counts("AlexNetConfig", shape=(len(CONVOLUTIONS),), channels=self.channels)
        require_counts("AlexNetConfig", hidden=self.hidden)


ALEXNET = AlexNetConfig()
ORIGIN = Origin(
    "torchvision",
    (
        *((rf"^features\.{i}\.", f"backbone.conv{n}.") for n, i in enumerate((0, 3, 6, 8, 10), 1)),
        *((rf"^classifier\.{i}\.", f"classifier.fc{n}.") for n, i in enumerate((1, 4, 6), 1)),
    ),
)


def AlexNet(
    config: AlexNetConfig = ALEXNET,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.5,
) -> Classifier:
    """AlexNet (Krizhevsky et al. 2012, "ImageNet Classification with Deep Convolutional Neural Networks").

    Its channels are those for one device (Krizhevsky 2014, arXiv 1404.5997), as torchvision has them.

    Args:
        config: a configuration of one's own. (default: the published one)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature of a hidden layer is dropped. (default: 0.5)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 63 × 63, output: (N, nclasses).

    Raises:
        TypeError: no configuration.
        LayerError: from a call: the images are too small.

    Example:
        >>> import torch, fluxlike as fl
        >>> with torch.device("meta"):
        ...     model = fl.models.AlexNet()
        >>> sum(x.numel() for x in fl.trainables(model))
        61100840
        >>> model.backbone(torch.empty(2, 3, 224, 224, device="meta")).shape
        torch.Size([2, 256, 6, 6])
    """
    if not isinstance(config, AlexNetConfig):
        raise TypeError(
            f"AlexNet takes an AlexNetConfig, found {config!r}; it has one depth, and classes are "
            "AlexNet(nclasses=…)"
        )
    require_counts("AlexNet", inchannels=inchannels, nclasses=nclasses)
    steps: dict[str, Any] = {}
    inputs = inchannels
    sizes = zip(CONVOLUTIONS, config.channels, strict=True)
    for n, ((kernel, stride, pad, pooled), channels) in enumerate(sizes, 1):
        steps[f"conv{n}"] = Conv(
            (kernel, kernel), inputs, channels, relu, stride=stride, pad=pad, init=kaiming_normal
        )
        if pooled:
            steps[f"pool{n}"] = MaxPool((3, 3), stride=2)
        inputs = channels
    classifier = hidden_classifier(6, inputs, config.hidden, nclasses, dropout)
    return Classifier(Chain(**steps), classifier, origins=(ORIGIN,))
