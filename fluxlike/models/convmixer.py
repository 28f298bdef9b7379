"""ConvMixer: convolutions over places and over channels of patches in turn."""

from __future__ import annotations

from dataclasses import dataclass

from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import gelu, relu
from fluxlike.layers.basic import Activation
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.padding import SamePad
from fluxlike.models.blocks import depth_rates
from fluxlike.models.classifier import Classifier, pooled_classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin
from fluxlike.models.residual import Residual

__all__ = ["ConvMixer", "ConvMixerConfig"]


@dataclass(frozen=True, kw_only=True)
class ConvMixerConfig:
    """What a ConvMixer is made of.

    Attributes:
        depth: how many blocks.
        channels: of all feature maps.
        kernel_size: of the convolutions over places. (default: 9)
        patch_size: height and width of a patch. (default: 7)
        activation: after each convolution. (default: gelu)

    Raises:
        ValueError: a number that is none, or below 1.
    """

    depth: int
    channels: int
    kernel_size: int = 9
    patch_size: int = 7
    activation: Activation = gelu

    def __post_init__(self) -> None:
        require_counts("ConvMixerConfig", depth=self.depth, channels=self.channels)
        require_counts("ConvMixerConfig", kernel_size=self.kernel_size, patch_size=self.patch_size)


CONV_MIXERS = {
    (1536, 20): ConvMixerConfig(depth=20, channels=1536),
    (768, 32): ConvMixerConfig(depth=32, channels=768, kernel_size=7, activation=relu),
    (1024, 20): ConvMixerConfig(depth=20, channels=1024, patch_size=14),
}

ORIGINS = (
    Origin(
        "timm",
        (
            (r"^(stem|blocks)\.", r"backbone.\1."),
            (r"^head\.", "classifier.fc."),
            (r"(blocks\.\d+)\.0\.fn\.", r"\1.depthwise.branch."),
            (r"(stem|branch)\.0\.", r"\1.conv."),
            (r"(stem|branch)\.2\.", r"\1.norm."),
            (r"(blocks\.\d+)\.1\.", r"\1.pointwise.conv."),
            (r"(blocks\.\d+)\.3\.", r"\1.pointwise.norm."),
        ),
    ),
)


def _layer(
    kernel_size: int, inputs: int, outputs: int, activation: Activation, *, stride: int = 1, groups: int = 1
) -> Chain:
    """A convolution, its activation, and only then the norm."""
    pad = SamePad() if stride == 1 else 0
    conv = Conv(
        (kernel_size, kernel_size),
        inputs,
        outputs,
        activation,
        stride=stride,
        pad=pad,
        groups=groups,
        init=kaiming_normal,
    )
    return Chain(conv=conv, norm=BatchNorm(outputs))


def _block(config: ConvMixerConfig, drop_path: float) -> Chain:
    n, activation = config.channels, config.activation
    depthwise = _layer(config.kernel_size, n, n, activation, groups=n)
    return Chain(depthwise=Residual(depthwise, drop_path=drop_path), pointwise=_layer(1, n, n, activation))


def ConvMixer(
    config: tuple[int, int] | ConvMixerConfig = (1536, 20),
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """Patches mixed by convolutions over places, channel by channel, and over channels, in turn.

    (Trockman & Kolter 2022, arXiv 2201.09792.) Its backbone gives feature maps (N, C, H, W), a place a patch.

    Args:
        config: channels and depth: (1536, 20), (768, 32) or (1024, 20); or a configuration of one's own, such
            as ``ConvMixerConfig(depth=8, channels=256, kernel_size=5, patch_size=2)`` for images of 32×32.
            (default: (1536, 20))
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0)
        drop_path: the probability with which an example goes around the depthwise convolution of the last
            block; it falls in equal steps to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), at least one patch; output: (N, nclasses).

    Raises:
        ValueError: there is no network of this size.

    Example:
        >>> import torch, fluxlike as fl
        >>> config = fl.models.ConvMixerConfig(depth=4, channels=64, kernel_size=5, patch_size=2)
        >>> model = fl.models.ConvMixer(config, nclasses=10)
        >>> model(torch.zeros(2, 3, 32, 32)).shape, model.backbone(torch.zeros(2, 3, 32, 32)).shape
        (torch.Size([2, 10]), torch.Size([2, 64, 16, 16]))
    """
    made = configuration("ConvMixer", CONV_MIXERS, config)
    require_counts("ConvMixer", inchannels=inchannels, nclasses=nclasses)
    size, n = made.patch_size, made.channels
    stem = _layer(size, inchannels, n, made.activation, stride=size)
    blocks = Chain(*(_block(made, rate) for rate in depth_rates(drop_path, made.depth)))
    return Classifier(
        Chain(stem=stem, blocks=blocks), pooled_classifier(n, nclasses, dropout), origins=ORIGINS
    )
