"""Inception-ResNet v2: inception blocks with a way around them."""

from __future__ import annotations

from fluxlike.layers.activations import identity
from fluxlike.models.classifier import Classifier
from fluxlike.models.inception import InceptionConfig, Pool, ScaledResidual, Unit, inception
from fluxlike.models.origins import Origin

__all__ = ["InceptionResNetV2"]

_HALVING = Pool("max", 3, stride=2)

_BLOCK35 = ScaledResidual(
    {
        "branch0": Unit(32),
        "branch1": (Unit(32), Unit(32, 3)),
        "branch2": (Unit(32), Unit(48, 3), Unit(64, 3)),
    },
    scale=0.17,
)
_BLOCK17 = ScaledResidual(
    {"branch0": Unit(192), "branch1": (Unit(128), Unit(160, (1, 7)), Unit(192, (7, 1)))}, scale=0.1
)
_BLOCK8 = ScaledResidual(
    {"branch0": Unit(192), "branch1": (Unit(192), Unit(224, (1, 3)), Unit(256, (3, 1)))}, scale=0.2
)

INCEPTION_RESNET_V2 = InceptionConfig(
    {
        "conv1a": Unit(32, 3, stride=2, pad=0),
        "conv2a": Unit(32, 3, pad=0),
        "conv2b": Unit(64, 3),
        "maxpool3a": _HALVING,
        "conv3b": Unit(80),
        "conv4a": Unit(192, 3, pad=0),
        "maxpool5a": _HALVING,
        "mixed5b": {
            "branch0": Unit(96),
            "branch1": (Unit(48), Unit(64, 5)),
            "branch2": (Unit(64), Unit(96, 3), Unit(96, 3)),
            "branch3": (Pool("mean", 3, pad=1), Unit(64)),
        },
        "blocks35": (_BLOCK35,) * 10,
        "mixed6a": {
            "branch0": Unit(384, 3, stride=2, pad=0),
            "branch1": (Unit(256), Unit(256, 3), Unit(384, 3, stride=2, pad=0)),
            "branch2": _HALVING,
        },
        "blocks17": (_BLOCK17,) * 20,
        "mixed7a": {
            "branch0": (Unit(256), Unit(384, 3, stride=2, pad=0)),
            "branch1": (Unit(256), Unit(288, 3, stride=2, pad=0)),
            "branch2": (Unit(256), Unit(288, 3), Unit(320, 3, stride=2, pad=0)),
            "branch3": _HALVING,
        },
        "blocks8": (_BLOCK8,) * 9,
        "block8": ScaledResidual(_BLOCK8.branches, scale=1.0, activation=identity),
        "conv7b": Unit(1536),
    },
    family="InceptionResNetV2",
)

ORIGINS = (
    Origin(
        "timm",
        (
            (r"^conv2d_", "backbone.conv"),
            ("^mixed_", "backbone.mixed"),
            (r"^repeat\.", "backbone.blocks35."),
            (r"^repeat_1\.", "backbone.blocks17."),
            (r"^repeat_2\.", "backbone.blocks8."),
            (r"^block8\.", "backbone.block8."),
            (r"^classif\.", "classifier.fc."),
            (r"(blocks\d+\.\d+|block8)\.branch", r"\1.branch.mixed.branch"),
            (r"conv2d\.", "branch.conv."),
            (r"\.bn\.", ".norm."),
        ),
    ),
)


def InceptionResNetV2(
    config: InceptionConfig = INCEPTION_RESNET_V2,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.2,
    drop_path: float = 0.0,
) -> Classifier:
    """An inception network whose blocks are residual (Szegedy et al. 2016, arXiv 1602.07261).

    Args:
        config: tables of one's own. (default: the published network)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0.2)
        drop_path: the probability with which an example goes around the last residual block; it falls in
            equal steps to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 75×75, output: (N, nclasses).

    Raises:
        TypeError: `config` is no InceptionConfig.
        ValueError: it is that of another published network.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.InceptionResNetV2(nclasses=10)
        >>> model.backbone(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 1536, 1, 1])
        >>> model(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """
    return inception(
        "InceptionResNetV2",
        config,
        inchannels=inchannels,
        nclasses=nclasses,
        dropout=dropout,
        drop_path=drop_path,
        origins=ORIGINS,
    )
