"""ConvNeXt: a residual network of convolutions, made as transformers are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from fluxlike.layers.basic import Dense, Scale
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.global_pool import GlobalMeanPool
from fluxlike.models.blocks import depth_rates
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin, Squeezed
from fluxlike.models.patches import features_first, features_last, mlp, small_normal, token_norm
from fluxlike.models.residual import Residual

__all__ = ["ConvNeXt", "ConvNeXtConfig"]


@dataclass(frozen=True)
class ConvNeXtConfig:
    """What a ConvNeXt is made of.

    Attributes:
        depths: blocks in each of the four stages.
        channels: of each stage.
        layer_scale: the factor of each block's branch at first. (default: 1e-6)

    Raises:
        ValueError: a stage without blocks or channels, or not four of them.
    """

    depths: tuple[int, int, int, int]
    channels: tuple[int, int, int, int]
    layer_scale: float = 1e-6

    def __post_init__(self) -> None:
        require_counts("ConvNeXtConfig", shape=(4,), depths=self.depths, channels=self.channels)


CONVNEXTS = {
    "atto": ConvNeXtConfig((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ConvNeXtConfig((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ConvNeXtConfig((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ConvNeXtConfig((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ConvNeXtConfig((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ConvNeXtConfig((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ConvNeXtConfig((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ConvNeXtConfig((3, 3, 27, 3), (192, 384, 768, 1536)),
}

_TORCHVISION = (
    (r"^features\.0\.0\.", "backbone.stem.conv."),
    (r"^features\.0\.1\.", "backbone.stem.norm."),
    (r"^features\.([246])\.0\.", r"backbone.\1.norm."),
    (r"^features\.([246])\.1\.", r"backbone.\1.conv."),
    (r"^features\.", "backbone."),
    (r"block\.0\.", "branch.conv."),
    (r"block\.2\.", "branch.norm."),
    (r"block\.3\.", "branch.mlp.fc1."),
    (r"block\.5\.", "branch.mlp.fc2."),
    (r"layer_scale", "branch.scale.weight"),
    (r"^classifier\.0\.", "classifier.norm."),
    (r"^classifier\.2\.", "classifier.fc."),
)
_TIMM = (
    (r"^stem\.0\.", "backbone.stem.conv."),
    (r"^stem\.1\.", "backbone.stem.norm."),
    (r"^stages\.(\d)\.downsample\.0\.", r"backbone.down\1.norm."),
    (r"^stages\.(\d)\.downsample\.1\.", r"backbone.down\1.conv."),
    *((rf"^stages\.{i}\.blocks\.(\d+)\.", rf"backbone.stage{i + 1}.\1.branch.") for i in range(4)),
    (r"conv_dw\.", "conv."),
    (r"gamma$", "scale.weight"),
    (r"^head\.", "classifier."),
)
ORIGINS = (
    Origin("torchvision", _TORCHVISION, Squeezed("layer_scale$", (1, 2))),
    # the smaller ones' dense layers are convolutions of one tap there
    Origin("timm", _TIMM, Squeezed(r"mlp\.fc\d\.weight$", (2, 3))),
)
_conv = partial(Conv, init=small_normal)


def _norm_of_maps(channels: int) -> dict[str, Any]:
    """The steps that normalise the channels at each place of (N, channels, H, W)."""
    return {"last": features_last, "norm": token_norm(channels), "first": features_first}


def _block(channels: int, layer_scale: float, drop_path: float) -> Residual:
    small = partial(torch.full, fill_value=layer_scale)
    branch = Chain(
        conv=_conv((7, 7), channels, channels, pad=3, groups=channels),
        last=features_last,
        norm=token_norm(channels),
        mlp=mlp(channels, 4 * channels, small_normal),
        scale=Scale(channels, bias=False, init=small),
        first=features_first,
    )
    return Residual(branch, drop_path=drop_path)


def ConvNeXt(
    config: str | ConvNeXtConfig = "tiny",
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A network of wide depthwise convolutions and dense layers (Liu et al. 2022, arXiv 2201.03545).

    Its backbone gives feature maps (N, C, H/32, W/32).

    Args:
        config: "tiny", "small", "base" or "large"; timm's "atto", "femto", "pico" or "nano"; or a
            configuration of one's own. (default: "tiny")
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. The paper has 0.1, 0.4, 0.5 and 0.5, by size. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W) of at least 32×32, output: (N, nclasses).

    Raises:
        ValueError: there is no network of this name.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.ConvNeXt("atto", nclasses=10)(torch.zeros(2, 3, 64, 64)).shape
        torch.Size([2, 10])
    """
    made = configuration("ConvNeXt", CONVNEXTS, config)
    require_counts("ConvNeXt", inchannels=inchannels, nclasses=nclasses)
    rates = iter(depth_rates(drop_path, sum(made.depths)))
    first, *_, last = made.channels
    steps: dict[str, Any] = {
        "stem": Chain(conv=_conv((4, 4), inchannels, first, stride=4), **_norm_of_maps(first))
    }
    for stage, (depth, channels) in enumerate(zip(made.depths, made.channels, strict=True)):
        if stage > 0:
            before = made.channels[stage - 1]
            conv = _conv((2, 2), before, channels, stride=2)
            steps[f"down{stage}"] = Chain(**_norm_of_maps(before), conv=conv)
        blocks = (_block(channels, made.layer_scale, next(rates)) for _ in range(depth))
        steps[f"stage{stage + 1}"] = Chain(*blocks)
    classifier = Chain(
        pool=GlobalMeanPool(),
        norm=token_norm(last),
        dropout=Dropout(dropout),
        fc=Dense(last, nclasses, init=small_normal),
    )
    return Classifier(Chain(**steps), classifier, origins=ORIGINS)
