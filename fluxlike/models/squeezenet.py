"""SqueezeNet: few parameters, by fire modules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import flatten, relu
from fluxlike.layers.adaptive_pool import AdaptiveMeanPool
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.parallel import Parallel
from fluxlike.layers.pool import MaxPool
from fluxlike.models.blocks import concatenated
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin

__all__ = ["SqueezeNet", "SqueezeNetConfig"]


@dataclass(frozen=True)
class SqueezeNetConfig:
    """What a SqueezeNet is made of.

    Attributes:
        kernel_size: of the first convolution.
        channels: of the first convolution.
        pools: the layers that a pool follows, by number: the first convolution is 1, the fire modules are 2
            and more, as in the paper.
        fires: the channels of each fire module, between its two steps and of each of the two parts of its
            output. (default: those of the paper)

    Raises:
        ValueError: a pool after a layer that is not there, or a number that is none.
    """

    kernel_size: int
    channels: int
    pools: tuple[int, ...]
    fires: tuple[tuple[int, int], ...] = (
        (16, 64),
        (16, 64),
        (32, 128),
        (32, 128),
        (48, 192),
        (48, 192),
        (64, 256),
        (64, 256),
    )

    def __post_init__(self) -> None:
        require_counts("SqueezeNetConfig", shape=(None, 2), fires=self.fires)
        require_counts("SqueezeNetConfig", kernel_size=self.kernel_size, channels=self.channels)
        last = len(self.fires) + 1
        if not all(1 <= number <= last for number in self.pools):
            raise ValueError(
                f"SqueezeNetConfig(pools={self.pools!r}): write numbers from 1 to {last}; the first "
                f"convolution is 1, the {len(self.fires)} fire modules follow"
            )


SQUEEZENETS = {
    "1.0": SqueezeNetConfig(7, 96, (1, 4, 8)),
    "1.1": SqueezeNetConfig(3, 64, (1, 3, 5)),
}


def SqueezeNet(
    version: str | SqueezeNetConfig = "1.1",
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.5,
) -> Classifier:
    """A network with the accuracy of AlexNet and 50 times fewer parameters (Iandola et al. 2016).

    (arXiv 1602.07360.) Its scores are not negative: an activation follows the last convolution.

    Args:
        version: "1.0", of the paper, "1.1", of the same authors, which computes 2.4 times less, or a
            configuration of one's own. (default: "1.1")
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last convolution. (default: 0.5)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 17 × 17, in version 1.0 21 × 21, output:
        (N, nclasses).

    Raises:
        ValueError: there is no such version.
        LayerError: from a call: the images are too small.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.SqueezeNet("1.1", nclasses=10)
        >>> model(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
        >>> model.backbone["fire2"]
        Chain(
          squeeze=Conv((1, 1), 64, 16, relu),             # 1_040 parameters
          expand=Parallel(
            concatenated,
            expand1x1=Conv((1, 1), 16, 64, relu),         # 1_088 parameters
            expand3x3=Conv((3, 3), 16, 64, relu, pad=1),  # 9_280 parameters
          ),                                              # 10_368 parameters
        )                                                 # Total: 6 tensors, 11_408 parameters, 44.562 KiB
    """
    config = configuration("SqueezeNet", SQUEEZENETS, version)
    require_counts("SqueezeNet", inchannels=inchannels, nclasses=nclasses)
    k, inputs = config.kernel_size, config.channels
    steps: dict[str, Any] = {}

    def add(number: int, name: str, layer: Any) -> None:
        steps[f"{name}{number}"] = layer
        if number in config.pools:
            steps[f"pool{number}"] = MaxPool((3, 3), stride=2, ceil_mode=True)

    add(1, "conv", Conv((k, k), inchannels, inputs, relu, stride=2, init=kaiming_normal))
    for number, (squeezed, expanded) in enumerate(config.fires, 2):
        add(number, "fire", _fire(inputs, squeezed, expanded))
        inputs = 2 * expanded
    classifier = Chain(
        dropout=Dropout(dropout),
        conv=Conv((1, 1), inputs, nclasses, relu),
        pool=AdaptiveMeanPool((1, 1)),
        flatten=flatten,
    )
    return Classifier(Chain(**steps), classifier, origins=(_origin(tuple(steps)),))


def _fire(inputs: int, squeezed: int, expanded: int) -> Chain:
    """A fire module: few channels, then many by kernels of two sizes. (N, inputs, H, W) → 2 expanded."""
    return Chain(
        squeeze=Conv((1, 1), inputs, squeezed, relu, init=kaiming_normal),
        expand=Parallel(
            concatenated,
            expand1x1=Conv((1, 1), squeezed, expanded, relu, init=kaiming_normal),
            expand3x3=Conv((3, 3), squeezed, expanded, relu, pad=1, init=kaiming_normal),
        ),
    )


def _origin(steps: tuple[str, ...]) -> Origin:
    """torchvision counts the steps, and the activation of the first convolution as one of them."""
    numbers = {name: i + (i > 0) for i, name in enumerate(steps)}
    return Origin(
        "torchvision",
        (
            *((rf"^features\.{i}\.", f"backbone.{name}.") for name, i in numbers.items()),
            (r"\.(expand\dx\d)\.", r".expand.\1."),
            (r"^classifier\.1\.", "classifier.conv."),
        ),
    )
