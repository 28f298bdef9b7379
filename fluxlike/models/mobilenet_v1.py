"""MobileNetV1: convolutions in depth, then across the channels."""

from __future__ import annotations

from fluxlike.layers.activations import relu6
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import round_channels
from fluxlike.models.inverted_residual import Stage, scaled, stages_of
from fluxlike.models.mobile import MobileConfig, mobile_network, of_width, timm_origins

__all__ = ["MobileNetV1"]

STAGES = (
    Stage(3, 1, 64, residual=False),
    Stage(3, 1, 128, 2, stride=2, residual=False),
    Stage(3, 1, 256, 2, stride=2, residual=False),
    Stage(3, 1, 512, 6, stride=2, residual=False),
    Stage(3, 1, 1024, 2, stride=2, residual=False),
)


def _configuration(width: float) -> MobileConfig:
    stem = round_channels(32 * width, lowest=0.9)
    stages = stages_of(scaled(STAGES, width), stem, relu6, projected=relu6)
    return MobileConfig(stem, stages, activation=relu6, dropout=0.0, family="MobileNetV1")


def MobileNetV1(
    width: float | MobileConfig = 1.0,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float | None = None,
) -> Classifier:
    """A network of depthwise separable convolutions (Howard et al. 2017, arXiv 1704.04861).

    Its activation is `relu6`, as in the authors' code. It has no way around a block, so no `drop_path`.

    Args:
        width: times the channels of each layer, or a configuration of one's own. (default: 1)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer; None for the
            configuration's, which is 0. (default: None)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        TypeError: a width that is no number.
        ValueError: a width that is not positive, or a configuration of another family.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.MobileNetV1(0.25, nclasses=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = of_width("MobileNetV1", width, _configuration)
    return mobile_network("MobileNetV1", config, timm_origins(config), inchannels, nclasses, dropout)
