"""Inception v3."""

from __future__ import annotations

from fluxlike.models.classifier import Classifier
from fluxlike.models.inception import InceptionConfig, Pool, Table, Unit, inception
from fluxlike.models.origins import Origin

__all__ = ["InceptionV3"]

_MEAN = Pool("mean", 3, pad=1, count_pad=True)
_HALVING = Pool("max", 3, stride=2)


def _narrow(pooled: int) -> dict[str, Table]:
    """A 5×5 beside two 3×3, the paper's figure 5."""
    return {
        "branch1x1": Unit(64),
        "branch5x5": (Unit(48), Unit(64, 5)),
        "branch3x3double": (Unit(64), Unit(96, 3), Unit(96, 3)),
        "branch_pool": (_MEAN, Unit(pooled)),
    }


def _factorised(channels: int) -> dict[str, Table]:
    """7×7 as 1×7 and 7×1, the paper's figure 6."""
    wide, high = Unit(channels, (1, 7)), Unit(channels, (7, 1))
    return {
        "branch1x1": Unit(192),
        "branch7x7": (Unit(channels), wide, Unit(192, (7, 1))),
        "branch7x7double": (Unit(channels), high, wide, high, Unit(192, (1, 7))),
        "branch_pool": (_MEAN, Unit(192)),
    }


_ACROSS: dict[str, Table] = {"a": Unit(384, (1, 3)), "b": Unit(384, (3, 1))}
_EXPANDED: dict[str, Table] = {  # the paper's figure 7
    "branch1x1": Unit(320),
    "branch3x3": (Unit(384), _ACROSS),
    "branch3x3double": (Unit(448), Unit(384, 3), _ACROSS),
    "branch_pool": (_MEAN, Unit(192)),
}

INCEPTION_V3 = InceptionConfig(
    {
        "conv1a": Unit(32, 3, stride=2, pad=0),
        "conv2a": Unit(32, 3, pad=0),
        "conv2b": Unit(64, 3),
        "maxpool1": _HALVING,
        "conv3b": Unit(80),
        "conv4a": Unit(192, 3, pad=0),
        "maxpool2": _HALVING,
        "mixed5b": _narrow(32),
        "mixed5c": _narrow(64),
        "mixed5d": _narrow(64),
        "mixed6a": {
            "branch3x3": Unit(384, 3, stride=2, pad=0),
            "branch3x3double": (Unit(64), Unit(96, 3), Unit(96, 3, stride=2, pad=0)),
            "branch_pool": _HALVING,
        },
        "mixed6b": _factorised(128),
        "mixed6c": _factorised(160),
        "mixed6d": _factorised(160),
        "mixed6e": _factorised(192),
        "mixed7a": {
            "branch3x3": (Unit(192), Unit(320, 3, stride=2, pad=0)),
            "branch7x7x3": (
                Unit(192),
                Unit(192, (1, 7)),
                Unit(192, (7, 1)),
                Unit(192, 3, stride=2, pad=0),
            ),
            "branch_pool": _HALVING,
        },
        "mixed7b": _EXPANDED,
        "mixed7c": _EXPANDED,
    },
    family="InceptionV3",
)

_NAMES = (
    (r"^AuxLogits\.", None),
    (r"^Conv2d_(\d[ab])_\dx\d", r"backbone.conv\1"),
    (r"^Mixed_", "backbone.mixed"),
    (r"^fc\.", "classifier.fc."),
    ("dbl", "double"),
    (r"_(\d)([ab])\.", r".fork1.\2."),
    (r"_(\d)\.", r".conv\1."),
    (r"_pool\.", "_pool.conv1."),
    (r"\.bn\.", ".norm."),
)
ORIGINS = (Origin("torchvision", _NAMES), Origin("timm", _NAMES))


def InceptionV3(
    config: InceptionConfig = INCEPTION_V3, *, inchannels: int = 3, nclasses: int = 1000, dropout: float = 0.5
) -> Classifier:
    """An inception network of factorised convolutions (Szegedy et al. 2015, arXiv 1512.00567).

    As torchvision has it, without the auxiliary classifier, whose tensors `load_weights` drops.
    torchvision's published weights expect images scaled to [-1, 1]; its ``transform_input``, which makes such
    of images normalised by ImageNet's means, is no part of this model.

    Args:
        config: tables of one's own. (default: the published network)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0.5, as
            torchvision trains it)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 75×75, output: (N, nclasses).

    Raises:
        TypeError: `config` is no InceptionConfig.
        ValueError: it is that of another published network.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.InceptionV3(nclasses=10)
        >>> model.backbone(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 2048, 1, 1])
        >>> model(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """
    return inception(
        "InceptionV3", config, inchannels=inchannels, nclasses=nclasses, dropout=dropout, origins=ORIGINS
    )
