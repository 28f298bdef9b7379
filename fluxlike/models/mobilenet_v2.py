"""MobileNetV2: inverted residuals with linear bottlenecks."""

from __future__ import annotations

from fluxlike.layers.activations import relu6
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import round_channels
from fluxlike.models.inverted_residual import Stage, scaled, stages_of
from fluxlike.models.mobile import MobileConfig, flat_rules, mobile_network, of_width, timm_origins
from fluxlike.models.origins import Origin

__all__ = ["MobileNetV2"]

STAGES = (
    Stage(3, 1, 16),
    Stage(3, 6, 24, 2, stride=2),
    Stage(3, 6, 32, 3, stride=2),
    Stage(3, 6, 64, 4, stride=2),
    Stage(3, 6, 96, 3),
    Stage(3, 6, 160, 3, stride=2),
    Stage(3, 6, 320),
)


def _configuration(width: float) -> MobileConfig:
    stem = round_channels(32 * width, lowest=0.9)
    return MobileConfig(
        stem,
        stages_of(scaled(STAGES, width), stem, relu6),
        head=round_channels(1280 * max(1.0, width), lowest=0.9),
        activation=relu6,
        family="MobileNetV2",
    )


def _torchvision(config: MobileConfig) -> Origin:
    """torchvision numbers the last convolution of a block and its norm as if they were two."""
    projections = []
    for number, stage in enumerate(config.stages, 1):
        last, block = len(stage[0].convolutions) - 1, rf"(stage{number}\.\d+)\.conv\."
        projections.append((rf"{block}{last}\.weight", rf"\1.branch.{last}.0.weight"))
        projections.append((rf"{block}{last + 1}\.", rf"\1.branch.{last}.1."))
    named = ((r"\.conv\.", ".branch."), (r"^classifier\.1\.", "classifier.fc."))
    return Origin("torchvision", (*flat_rules(config), *projections, *named))


def MobileNetV2(
    width: float | MobileConfig = 1.0,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float | None = None,
    drop_path: float = 0.0,
) -> Classifier:
    """A network of inverted residuals with linear bottlenecks (Sandler et al. 2018, arXiv 1801.04381).

    Args:
        width: times the channels of each layer, or a configuration of one's own; those of the last
            convolution never fall below 1280. (default: 1)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer; None for the
            configuration's, which is 0.2. (default: None)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        TypeError: a width that is no number.
        ValueError: a width that is not positive, or a configuration of another family.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.MobileNetV2(0.25, nclasses=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = of_width("MobileNetV2", width, _configuration)
    origins = (_torchvision(config), *timm_origins(config))
    return mobile_network("MobileNetV2", config, origins, inchannels, nclasses, dropout, drop_path)
