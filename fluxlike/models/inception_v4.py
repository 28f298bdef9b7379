"""Inception v4."""

from __future__ import annotations

from fluxlike.models.classifier import Classifier
from fluxlike.models.inception import InceptionConfig, Pool, Table, Unit, inception
from fluxlike.models.origins import Origin

__all__ = ["InceptionV4"]

_MEAN = Pool("mean", 3, pad=1)
_HALVING = Pool("max", 3, stride=2)

_STEM: dict[str, Table] = {  # the paper's figure 3
    "conv1": Unit(32, 3, stride=2, pad=0),
    "conv2": Unit(32, 3, pad=0),
    "conv3": Unit(64, 3),
    "mixed3a": {"maxpool": _HALVING, "conv": Unit(96, 3, stride=2, pad=0)},
    "mixed4a": {
        "branch0": (Unit(64), Unit(96, 3, pad=0)),
        "branch1": (Unit(64), Unit(64, (1, 7)), Unit(64, (7, 1)), Unit(96, 3, pad=0)),
    },
    "mixed5a": {"conv": Unit(192, 3, stride=2, pad=0), "maxpool": _HALVING},
}
_A: dict[str, Table] = {  # figure 4
    "branch0": Unit(96),
    "branch1": (Unit(64), Unit(96, 3)),
    "branch2": (Unit(64), Unit(96, 3), Unit(96, 3)),
    "branch3": (_MEAN, Unit(96)),
}
_FROM_A_TO_B: dict[str, Table] = {  # figure 7
    "branch0": Unit(384, 3, stride=2, pad=0),
    "branch1": (Unit(192), Unit(224, 3), Unit(256, 3, stride=2, pad=0)),
    "branch2": _HALVING,
}
_B: dict[str, Table] = {  # figure 5
    "branch0": Unit(384),
    "branch1": (Unit(192), Unit(224, (1, 7)), Unit(256, (7, 1))),
    "branch2": (Unit(192), Unit(192, (7, 1)), Unit(224, (1, 7)), Unit(224, (7, 1)), Unit(256, (1, 7))),
    "branch3": (_MEAN, Unit(128)),
}
_FROM_B_TO_C: dict[str, Table] = {  # figure 8
    "branch0": (Unit(192), Unit(192, 3, stride=2, pad=0)),
    "branch1": (Unit(256), Unit(256, (1, 7)), Unit(320, (7, 1)), Unit(320, 3, stride=2, pad=0)),
    "branch2": _HALVING,
}
_ACROSS: dict[str, Table] = {"a": Unit(256, (1, 3)), "b": Unit(256, (3, 1))}
_C: dict[str, Table] = {  # figure 6
    "branch0": Unit(256),
    "branch1": (Unit(384), _ACROSS),
    "branch2": (Unit(384), Unit(448, (3, 1)), Unit(512, (1, 3)), _ACROSS),
    "branch3": (_MEAN, Unit(256)),
}

INCEPTION_V4 = InceptionConfig(
    {
        **_STEM,
        **{f"inception_a{i}": _A for i in range(1, 5)},
        "reduction_a": _FROM_A_TO_B,
        **{f"inception_b{i}": _B for i in range(1, 8)},
        "reduction_b": _FROM_B_TO_C,
        **{f"inception_c{i}": _C for i in range(1, 4)},
    },
    family="InceptionV4",
)

ORIGINS = (
    Origin(
        "timm",
        (
            (r"^features\.", "backbone."),
            (r"^last_linear\.", "classifier.fc."),
            (r"(branch\d)_\d([ab])\.", r"\1.fork1.\2."),
            (r"(branch\d)_(\d)\.", r"\1.\2."),
            (r"\.bn\.", ".norm."),
        ),
    ),
)


def InceptionV4(
    config: InceptionConfig = INCEPTION_V4, *, inchannels: int = 3, nclasses: int = 1000, dropout: float = 0.2
) -> Classifier:
    """A deeper and more uniform inception network (Szegedy et al. 2016, arXiv 1602.07261).

    Args:
        config: tables of one's own. (default: the published network)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0.2)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 75×75, output: (N, nclasses).

    Raises:
        TypeError: `config` is no InceptionConfig.
        ValueError: it is that of another published network.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.InceptionV4(nclasses=10)
        >>> model.backbone(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 1536, 1, 1])
        >>> model(torch.zeros(1, 3, 96, 96)).shape
        torch.Size([1, 10])
    """
    return inception(
        "InceptionV4", config, inchannels=inchannels, nclasses=nclasses, dropout=dropout, origins=ORIGINS
    )
