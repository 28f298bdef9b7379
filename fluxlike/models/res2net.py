"""Res2Net and Res2NeXt: residual networks whose bottlenecks see several scales at once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from fluxlike.layers.activations import identity
from fluxlike.layers.errors import within
from fluxlike.layers.pool import MeanPool
from fluxlike.layers.sizes import refuse_shape
from fluxlike.models.blocks import conv_norm
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.origins import Origin
from fluxlike.models.resnet import ORIGINS as RESNET_ORIGINS
from fluxlike.models.resnet import RESNETS, ResNetConfig, residual_network
from fluxlike.trees.functor import functor

__all__ = ["MultiScale", "Res2NeXt", "Res2Net", "Res2NetConfig"]


@dataclass(frozen=True)
class Res2NetConfig:
    """What a Res2Net is made of.

    Attributes:
        depths: blocks in each stage.
        width: channels of each scale in the first stage, in each of its groups; they double with the stage.
            (default: 26)
        scale: how many parts the channels of a bottleneck are cut into, at least 2. (default: 4)
        groups: in how many groups each part is convolved. (default: 1)

    Raises:
        ValueError: a number that is none, or below 1.
    """

    depths: tuple[int, ...]
    width: int = 26
    scale: int = 4
    groups: int = 1

    def __post_init__(self) -> None:
        require_counts("Res2NetConfig", shape=(None,), depths=self.depths)
        require_counts("Res2NetConfig", width=self.width, scale=self.scale, groups=self.groups)


RES2NETS = {
    50: Res2NetConfig(RESNETS[50].depths),
    101: Res2NetConfig(RESNETS[101].depths),
    152: Res2NetConfig(RESNETS[152].depths),
    (50, 48, 2): Res2NetConfig(RESNETS[50].depths, width=48, scale=2),
    (50, 14, 8): Res2NetConfig(RESNETS[50].depths, width=14, scale=8),
    (50, 26, 6): Res2NetConfig(RESNETS[50].depths, scale=6),
    (50, 26, 8): Res2NetConfig(RESNETS[50].depths, scale=8),
}
RES2NEXTS = {depth: Res2NetConfig(RESNETS[depth].depths, width=4, groups=8) for depth in (50, 101)}

ORIGINS = tuple(
    Origin(
        origin.library,
        (
            *origin.rules,
            (r"\.convs\.(\d+)\.", r".conv2.convs.\1.conv."),
            (r"\.bns\.(\d+)\.", r".conv2.convs.\1.norm."),
        ),
    )
    for origin in RESNET_ORIGINS
    if origin.library == "timm"
)


@functor(children=("convs", "last"))
class MultiScale:
    """Convolutions of a part of the channels each, in a hierarchy (Gao et al. 2019, arXiv 1904.01169).

    Each part but the last is convolved, together with what the part before gave: ``yᵢ = convᵢ(xᵢ + yᵢ₋₁)``.
    So a part sees more of the image than the one before.

    Args:
        channels: of the input and the output.
        scale: how many parts, at least 2.
        groups: in how many groups each part is convolved. (default: 1)
        stride: step of the convolutions. (default: 1)
        apart: whether each part is convolved alone, and the last averaged, as in the first block of a stage.
            (default: False)

    Attributes:
        convs: for each part but the last a 3×3 convolution, its norm and a relu, a tuple.
        last: what becomes of the last part, a MeanPool or the identity.
        apart: whether each part is convolved alone.

    Input: (N, channels, H, W). Output: the same, with H and W divided by the stride.

    Raises:
        ValueError: a scale below 2, or one that does not divide the channels; or a stride without `apart`;
            from a call, an input of another shape.
        LayerError: from a call: a layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.MultiScale(32, 4)(torch.zeros(1, 32, 7, 7)).shape
        torch.Size([1, 32, 7, 7])
    """

    def __init__(
        self, channels: int, scale: int, *, groups: int = 1, stride: int = 1, apart: bool = False
    ) -> None:
        if scale < 2 or channels % scale:
            raise ValueError(
                f"MultiScale cuts {channels} channels into scale={scale} parts; write a number of at least 2 "
                "that divides them (of a single part, it is a plain bottleneck: ResNet, ResNeXt)"
            )
        if stride > 1 and not apart:
            raise ValueError(
                f"stride={stride}: what a part gives can't be added to the next one, which is larger; write "
                "apart=True"
            )
        self.channels, width = channels, channels // scale
        self.convs = tuple(conv_norm(3, width, width, stride=stride, groups=groups) for _ in range(scale - 1))
        self.last = MeanPool((3, 3), stride=stride, pad=1) if apart else identity
        self.apart = apart

    def __call__(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] != self.channels:
            refuse_shape("MultiScale", x, 2, self.channels)
        *parts, last = x.chunk(len(self.convs) + 1, 1)
        ys: list[Tensor] = []
        for i, (conv, part) in enumerate(zip(self.convs, parts, strict=True)):
            seen = part if self.apart or not ys else part + ys[-1]
            ys.append(within(f".convs[{i}]", conv, seen))
        return torch.cat((*ys, within(".last", self.last, last)), 1)


def _scales(config: Res2NetConfig, width: int, /, *, stride: int, first: bool) -> MultiScale:
    """The middle of a bottleneck."""
    return MultiScale(width, config.scale, groups=config.groups, stride=stride, apart=first)


def _res2net(
    family: str, config: Res2NetConfig, inchannels: int, nclasses: int, dropout: float, drop_path: float
) -> Classifier:
    """The residual network of bottlenecks as wide, with several scales in each."""
    plain = ResNetConfig(config.depths, width=config.width, groups=config.groups * config.scale)
    return residual_network(
        family,
        plain,
        inchannels,
        nclasses,
        dropout,
        drop_path,
        middle=partial(_scales, config),
        origins=ORIGINS,
    )


def Res2Net(
    depth: int | tuple[int, int, int] | Res2NetConfig = 50,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A residual network of several scales in each bottleneck (Gao et al. 2019, arXiv 1904.01169).

    Args:
        depth: 50, 101 or 152, of width 26 and scale 4; depth, width and scale, as in (50, 48, 2),
            (50, 14, 8), (50, 26, 6) and (50, 26, 8); or a configuration of one's own. (default: 50)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no such network, or the scale is below 2.
        TypeError: `depth` is no depth and no configuration.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.Res2Net(50, nclasses=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = configuration("Res2Net", RES2NETS, depth)
    return _res2net("Res2Net", config, inchannels, nclasses, dropout, drop_path)


def Res2NeXt(
    depth: int | Res2NetConfig = 50,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A `Res2Net` that convolves in groups (Gao et al. 2019, arXiv 1904.01169).

    Args:
        depth: 50 or 101, of width 4, scale 4 and 8 groups, or a configuration of one's own. (default: 50)
        inchannels: as in `Res2Net`. (default: 3)
        nclasses: as in `Res2Net`. (default: 1000)
        dropout: as in `Res2Net`. (default: 0)
        drop_path: as in `Res2Net`. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth, or the scale is below 2.
        TypeError: `depth` is no depth and no configuration.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.Res2NeXt(50, nclasses=10)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = configuration("Res2NeXt", RES2NEXTS, depth)
    return _res2net("Res2NeXt", config, inchannels, nclasses, dropout, drop_path)
