"""GoogLeNet, the first inception network."""

from __future__ import annotations

from fluxlike.models.classifier import Classifier
from fluxlike.models.inception import InceptionConfig, Pool, Table, Unit, inception
from fluxlike.models.origins import Origin

__all__ = ["GoogLeNet"]


def _halving(window: int) -> Pool:
    return Pool("max", window, stride=2, ceil=True)


def _block(
    one: int, before_three: int, three: int, before_five: int, five: int, pooled: int
) -> dict[str, Table]:
    """The columns of the paper's table 1; "five" is 3×3, as in the weights that are published."""
    return {
        "branch1": Unit(one),
        "branch2": (Unit(before_three), Unit(three, 3)),
        "branch3": (Unit(before_five), Unit(five, 3)),
        "branch4": (Pool("max", 3, pad=1), Unit(pooled)),
    }


GOOGLENET = InceptionConfig(
    {
        "conv1": Unit(64, 7, stride=2),
        "maxpool1": _halving(3),
        "conv2": Unit(64),
        "conv3": Unit(192, 3),
        "maxpool2": _halving(3),
        "inception3a": _block(64, 96, 128, 16, 32, 32),
        "inception3b": _block(128, 128, 192, 32, 96, 64),
        "maxpool3": _halving(3),
        "inception4a": _block(192, 96, 208, 16, 48, 64),
        "inception4b": _block(160, 112, 224, 24, 64, 64),
        "inception4c": _block(128, 128, 256, 24, 64, 64),
        "inception4d": _block(112, 144, 288, 32, 64, 64),
        "inception4e": _block(256, 160, 320, 32, 128, 128),
        "maxpool4": _halving(2),
        "inception5a": _block(256, 160, 320, 32, 128, 128),
        "inception5b": _block(384, 192, 384, 48, 128, 128),
    },
    family="GoogLeNet",
)

ORIGINS = (
    Origin(
        "torchvision",
        (
            (r"^aux\d\.", None),
            ("^(conv|inception)", r"backbone.\1"),
            (r"^fc\.", "classifier.fc."),
            (r"\.bn\.", ".norm."),
        ),
    ),
)


def GoogLeNet(
    config: InceptionConfig = GOOGLENET, *, inchannels: int = 3, nclasses: int = 1000, dropout: float = 0.4
) -> Classifier:
    """The network that inception blocks were made for (Szegedy et al. 2014, arXiv 1409.4842).

    As torchvision has it: each convolution has a BatchNorm, the paper's 5×5 are 3×3, and there are no
    auxiliary classifiers, whose tensors `load_weights` drops. torchvision's published weights expect images
    scaled to [-1, 1]; its ``transform_input``, which makes such of images normalised by ImageNet's means, is
    no part of this model.

    Args:
        config: tables of one's own. (default: the published network)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0.4)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 15×15, output: (N, nclasses).

    Raises:
        TypeError: `config` is no InceptionConfig.
        ValueError: it is that of another published network.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.GoogLeNet(nclasses=10)
        >>> model.backbone(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1024, 2, 2])
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    return inception(
        "GoogLeNet", config, inchannels=inchannels, nclasses=nclasses, dropout=dropout, origins=ORIGINS
    )
