"""EfficientNet and EfficientNetV2: inverted residuals scaled in width and depth together."""

from __future__ import annotations

from fluxlike.layers.activations import silu
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, round_channels
from fluxlike.models.inverted_residual import Stage, scaled, stages_of
from fluxlike.models.mobile import MobileConfig, mobile_network, timm_origins
from fluxlike.models.origins import Origin

__all__ = ["EfficientNet", "EfficientNetV2"]

STAGES = (
    Stage(3, 1, 16, 1, reduction=4),
    Stage(3, 6, 24, 2, stride=2, reduction=4),
    Stage(5, 6, 40, 2, stride=2, reduction=4),
    Stage(3, 6, 80, 3, stride=2, reduction=4),
    Stage(5, 6, 112, 3, reduction=4),
    Stage(5, 6, 192, 4, stride=2, reduction=4),
    Stage(3, 6, 320, 1, reduction=4),
)
SMALL = (
    Stage(3, 1, 24, 2, fused=True),
    Stage(3, 4, 48, 4, stride=2, fused=True),
    Stage(3, 4, 64, 4, stride=2, fused=True),
    Stage(3, 4, 128, 6, stride=2, reduction=4),
    Stage(3, 6, 160, 9, reduction=4),
    Stage(3, 6, 256, 15, stride=2, reduction=4),
)
MEDIUM = (
    Stage(3, 1, 24, 3, fused=True),
    Stage(3, 4, 48, 5, stride=2, fused=True),
    Stage(3, 4, 80, 5, stride=2, fused=True),
    Stage(3, 4, 160, 7, stride=2, reduction=4),
    Stage(3, 6, 176, 14, reduction=4),
    Stage(3, 6, 304, 18, stride=2, reduction=4),
    Stage(3, 6, 512, 5, reduction=4),
)
LARGE = (
    Stage(3, 1, 32, 4, fused=True),
    Stage(3, 4, 64, 7, stride=2, fused=True),
    Stage(3, 4, 96, 7, stride=2, fused=True),
    Stage(3, 4, 192, 10, stride=2, reduction=4),
    Stage(3, 6, 224, 19, reduction=4),
    Stage(3, 6, 384, 25, stride=2, reduction=4),
    Stage(3, 6, 640, 7, reduction=4),
)


def _configuration(
    stages: tuple[Stage, ...],
    stem: int,
    head: int,
    dropout: float,
    eps: float = 1e-5,
    momentum: float = 0.1,
    family: str = "EfficientNetV2",
) -> MobileConfig:
    return MobileConfig(
        stem,
        stages_of(stages, stem, silu),
        head=head,
        activation=silu,
        excite_activation=silu,
        dropout=dropout,
        eps=eps,
        momentum=momentum,
        family=family,
    )


def _compound(
    width: float, depth: float, dropout: float, eps: float = 1e-5, momentum: float = 0.1
) -> MobileConfig:
    """B0, scaled."""
    stem, head = (round_channels(channels * width, lowest=0.9) for channels in (32, 1280))
    return _configuration(scaled(STAGES, width, depth), stem, head, dropout, eps, momentum, "EfficientNet")


EFFICIENTNETS = {
    "b0": _compound(1.0, 1.0, 0.2),
    "b1": _compound(1.0, 1.1, 0.2),
    "b2": _compound(1.1, 1.2, 0.3),
    "b3": _compound(1.2, 1.4, 0.3),
    "b4": _compound(1.4, 1.8, 0.4),
    "b5": _compound(1.6, 2.2, 0.4, eps=1e-3, momentum=0.01),
    "b6": _compound(1.8, 2.6, 0.5, eps=1e-3, momentum=0.01),
    "b7": _compound(2.0, 3.1, 0.5, eps=1e-3, momentum=0.01),
}
EFFICIENTNETS_V2 = {
    "small": _configuration(SMALL, 24, 1280, 0.2, eps=1e-3),
    "medium": _configuration(MEDIUM, 24, 1280, 0.3, eps=1e-3),
    "large": _configuration(LARGE, 32, 1280, 0.4, eps=1e-3),
}

#: torchvision's numbers of stages, blocks and layers are those of the Chains here.
TORCHVISION = Origin(
    "torchvision",
    (
        (r"^features\.", "backbone."),
        (r"\.block\.", ".branch."),
        (r"\.fc1\.", ".layer.reduce."),
        (r"\.fc2\.", ".layer.expand."),
        (r"^classifier\.1\.", "classifier.fc."),
    ),
)


def EfficientNet(
    size: str | MobileConfig = "b0",
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float | None = None,
    drop_path: float = 0.2,
) -> Classifier:
    """A network that is wider and deeper by one factor (Tan & Le 2019, arXiv 1905.11946).

    The norms of B5 to B7 have eps 1e-3 and momentum 0.01, as in torchvision, the others' eps 1e-5 and
    momentum 0.1.

    Args:
        size: "b0" to "b7", or a configuration of one's own. (default: "b0")
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer; None for the
            configuration's, which is from 0.2 for B0 to 0.5 for B7. (default: None)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0.2, the paper's)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this size, or a configuration of another family.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.EfficientNet("b0", nclasses=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = configuration("EfficientNet", EFFICIENTNETS, size)
    origins = (TORCHVISION, *timm_origins(config))
    return mobile_network("EfficientNet", config, origins, inchannels, nclasses, dropout, drop_path)


def EfficientNetV2(
    size: str | MobileConfig = "small",
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float | None = None,
    drop_path: float = 0.2,
) -> Classifier:
    """An `EfficientNet` whose first stages convolve in full depth (Tan & Le 2021, arXiv 2104.00298).

    Its norms have eps 1e-3. timm's ``efficientnetv2_s`` has eps 1e-5, so its weights fit
    ``EfficientNetV2(dataclasses.replace(fluxlike.models.efficientnet.EFFICIENTNETS_V2["small"], eps=1e-5))``.

    Args:
        size: "small", "medium", "large", or a configuration of one's own. (default: "small")
        inchannels: as in `EfficientNet`. (default: 3)
        nclasses: as in `EfficientNet`. (default: 1000)
        dropout: as in `EfficientNet`; the configurations' are 0.2, 0.3 and 0.4. (default: None)
        drop_path: as in `EfficientNet`. (default: 0.2)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this size, or a configuration of another family.

    Example:
        >>> import torch, fluxlike as fl
        >>> with torch.device("meta"):
        ...     model = fl.models.EfficientNetV2("small", nclasses=10)
        >>> model(torch.zeros(1, 3, 64, 64, device="meta")).shape
        torch.Size([1, 10])
    """
    config = configuration("EfficientNetV2", EFFICIENTNETS_V2, size)
    origins = timm_origins(config) or (TORCHVISION,)
    return mobile_network("EfficientNetV2", config, origins, inchannels, nclasses, dropout, drop_path)
