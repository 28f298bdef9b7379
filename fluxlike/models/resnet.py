"""Residual networks: ResNet, WideResNet, ResNeXt, and those with squeeze and excitation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from fluxlike.layers.activations import identity, relu
from fluxlike.layers.compose import Chain
from fluxlike.layers.pool import MaxPool
from fluxlike.models.blocks import conv_norm, depth_rates, squeeze_excite
from fluxlike.models.classifier import Classifier, pooled_classifier
from fluxlike.models.configurations import configuration, require_counts, round_channels
from fluxlike.models.origins import Origin
from fluxlike.models.residual import Residual

__all__ = ["ResNeXt", "ResNet", "ResNetConfig", "SEResNeXt", "SEResNet", "WideResNet"]


@dataclass(frozen=True)
class ResNetConfig:
    """What a residual network is made of.

    Attributes:
        depths: blocks in each stage; the channels of the stages are 64, 128, 256, 512.
        bottleneck: whether a block is convolutions of 1×1, 3×3 and 1×1, the last to four times the channels,
            or two of 3×3. (default: True)
        width: channels of each group of a bottleneck's 3×3 in the first stage; they double with the stage.
            (default: 64)
        groups: the number of these groups. (default: 1)
        reduction: by what squeeze and excitation divides the channels; 0 for a network without. (default: 0)

    Raises:
        ValueError: a number that is none, or `width` or `groups` in a network without bottlenecks, which has
            neither.
    """

    depths: tuple[int, ...]
    bottleneck: bool = True
    width: int = 64
    groups: int = 1
    reduction: int = 0

    def __post_init__(self) -> None:
        require_counts("ResNetConfig", shape=(None,), depths=self.depths)
        require_counts("ResNetConfig", width=self.width, groups=self.groups)
        require_counts("ResNetConfig", least=0, reduction=self.reduction)
        if not self.bottleneck and (self.width, self.groups) != (64, 1):
            raise ValueError(
                f"ResNetConfig(bottleneck=False, width={self.width}, groups={self.groups}): these are of the "
                "3×3 convolution of a bottleneck, and there is none; write bottleneck=True, or leave them out"
            )


#: What makes a family another one than ResNet, and an example of it.
KINDS = {
    "WideResNet": {"width": 128},
    "ResNeXt": {"groups": 32},
    "SEResNet": {"reduction": 16},
    "SEResNeXt": {"groups": 32, "reduction": 16},
}
RESNETS = {
    18: ResNetConfig((2, 2, 2, 2), bottleneck=False),
    34: ResNetConfig((3, 4, 6, 3), bottleneck=False),
    50: ResNetConfig((3, 4, 6, 3)),
    101: ResNetConfig((3, 4, 23, 3)),
    152: ResNetConfig((3, 8, 36, 3)),
}
WIDE_RESNETS = {depth: replace(RESNETS[depth], width=128) for depth in (50, 101)}
RESNEXTS = {
    50: replace(RESNETS[50], groups=32, width=4),
    101: replace(RESNETS[101], groups=32, width=8),
    (101, 64): replace(RESNETS[101], groups=64, width=4),
}
SE_RESNETS = {depth: replace(config, reduction=16) for depth, config in RESNETS.items()}
SE_RESNEXTS = {depth: replace(config, reduction=16) for depth, config in RESNEXTS.items()}

_NAMES = (
    (r"^(conv1|bn1|layer)", r"backbone.\1"),
    (r"^fc\.", "classifier.fc."),
    (r"(layer\d\.\d+)\.(conv|bn|se)", r"\1.branch.\2"),
    (r"downsample\.0", "shortcut.conv"),
    (r"downsample\.1", "shortcut.norm"),
    (r"conv(\d)\.weight", r"conv\1.conv.weight"),
    (r"bn(\d)\.", r"conv\1.norm."),
    (r"se\.fc1", "se.layer.reduce"),
    (r"se\.fc2", "se.layer.expand"),
)
ORIGINS = (Origin("torchvision", _NAMES), Origin("timm", _NAMES))


class Middle(Protocol):
    """Makes the middle of a bottleneck: of its channels, its stride, and whether its stage begins here."""

    def __call__(self, width: int, /, *, stride: int, first: bool) -> Any: ...


def _configuration(family: str, table: dict[Any, ResNetConfig], which: Any) -> ResNetConfig:
    """The configuration of a family, with what makes it this one."""
    config, plain = configuration(family, table, which), ResNetConfig((1,))
    for name, example in KINDS.get(family, {}).items():
        if getattr(config, name) <= getattr(plain, name):
            raise ValueError(
                f"{family} takes a ResNetConfig with {name} above {getattr(plain, name)}, found "
                f"{getattr(config, name)}, as a plain ResNet has it; write ResNetConfig(…, {name}={example})"
            )
    return config


def _grouped(groups: int, width: int, /, *, stride: int, first: bool) -> Chain:
    """The middle of a plain bottleneck."""
    return conv_norm(3, width, width, stride=stride, groups=groups)


def _block(
    config: ResNetConfig,
    inputs: int,
    channels: int,
    stride: int,
    drop_path: float,
    middle: Callable[[int], Any],
) -> Residual:
    """One block, which gives `channels`, in a bottleneck four times as many."""
    if config.bottleneck:
        outputs, width = 4 * channels, channels * config.width // 64 * config.groups
        layers: dict[str, Any] = {
            "conv1": conv_norm(1, inputs, width),
            "conv2": middle(width),
            "conv3": conv_norm(1, width, outputs, identity),
        }
    else:
        outputs = channels
        layers = {
            "conv1": conv_norm(3, inputs, channels, stride=stride),
            "conv2": conv_norm(3, channels, channels, identity),
        }
    if config.reduction:
        layers["se"] = squeeze_excite(outputs, round_channels(outputs / config.reduction))
    same = stride == 1 and inputs == outputs
    shortcut = identity if same else conv_norm(1, inputs, outputs, identity, stride=stride)
    return Residual(Chain(**layers), shortcut, relu, drop_path=drop_path)


def residual_network(
    family: str,
    config: ResNetConfig,
    inchannels: int,
    nclasses: int,
    dropout: float,
    drop_path: float,
    *,
    middle: Middle | None = None,
    origins: tuple[Origin, ...] = ORIGINS,
) -> Classifier:
    """The network of a configuration; the arguments are those of `ResNet`, and more.

    Args:
        family: the model's name, for errors.
        config: what it is made of.
        inchannels: as in `ResNet`.
        nclasses: as in `ResNet`.
        dropout: as in `ResNet`.
        drop_path: as in `ResNet`.
        middle: makes the middle of a bottleneck. (default: a 3×3 convolution in the configuration's groups)
        origins: the libraries whose weights fit. (default: those of a ResNet)
    """
    require_counts(family, inchannels=inchannels, nclasses=nclasses)
    middle = partial(_grouped, config.groups) if middle is None else middle
    steps: dict[str, Any] = {
        "conv1": conv_norm(7, inchannels, 64, stride=2),
        "maxpool": MaxPool((3, 3), stride=2, pad=1),
    }
    rates = iter(depth_rates(drop_path, sum(config.depths)))
    inputs = 64
    for stage, depth in enumerate(config.depths):
        channels, blocks = 64 * 2**stage, []
        for i in range(depth):
            stride = 2 if i == 0 and stage > 0 else 1
            made = partial(middle, stride=stride, first=i == 0)
            blocks.append(_block(config, inputs, channels, stride, next(rates), made))
            inputs = 4 * channels if config.bottleneck else channels
        steps[f"layer{stage + 1}"] = Chain(*blocks)
    return Classifier(Chain(**steps), pooled_classifier(inputs, nclasses, dropout), origins=origins)


def ResNet(
    depth: int | ResNetConfig = 50,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A residual network (He et al. 2015, arXiv 1512.03385).

    Its stride is in the 3×3 convolution of a bottleneck, as in torchvision's (ResNet V1.5).

    Args:
        depth: 18, 34, 50, 101 or 152, or a configuration of one's own. (default: 50)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.ResNet(18, inchannels=1, nclasses=10)
        >>> model(torch.zeros(2, 1, 64, 64)).shape
        torch.Size([2, 10])
    """
    config = _configuration("ResNet", RESNETS, depth)
    return residual_network("ResNet", config, inchannels, nclasses, dropout, drop_path)


def WideResNet(
    depth: int | ResNetConfig = 50,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A residual network of bottlenecks twice as wide (Zagoruyko & Komodakis 2016, arXiv 1605.07146).

    Args:
        depth: 50 or 101, or a configuration of one's own. (default: 50)
        inchannels: as in `ResNet`. (default: 3)
        nclasses: as in `ResNet`. (default: 1000)
        dropout: as in `ResNet`. (default: 0)
        drop_path: as in `ResNet`. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth, or a configuration of narrow bottlenecks.

    Example:
        >>> import fluxlike as fl
        >>> sum(x.numel() for x in fl.trainables(fl.models.WideResNet(50)))
        68883240
    """
    config = _configuration("WideResNet", WIDE_RESNETS, depth)
    return residual_network("WideResNet", config, inchannels, nclasses, dropout, drop_path)


def ResNeXt(
    depth: int | tuple[int, int] | ResNetConfig = 50,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A residual network whose bottlenecks convolve in groups (Xie et al. 2016, arXiv 1611.05431).

    Args:
        depth: 50 (32×4d), 101 (32×8d), (101, 64) (64×4d), or a configuration of one's own. (default: 50)
        inchannels: as in `ResNet`. (default: 3)
        nclasses: as in `ResNet`. (default: 1000)
        dropout: as in `ResNet`. (default: 0)
        drop_path: as in `ResNet`. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth, or a configuration without groups.

    Example:
        >>> import fluxlike as fl
        >>> sum(x.numel() for x in fl.trainables(fl.models.ResNeXt(50)))
        25028904
    """
    config = _configuration("ResNeXt", RESNEXTS, depth)
    return residual_network("ResNeXt", config, inchannels, nclasses, dropout, drop_path)


def SEResNet(
    depth: int | ResNetConfig = 50,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A `ResNet` with squeeze and excitation in each block (Hu et al. 2017, arXiv 1709.01507).

    Args:
        depth: 18, 34, 50, 101 or 152, or a configuration of one's own. (default: 50)
        inchannels: as in `ResNet`. (default: 3)
        nclasses: as in `ResNet`. (default: 1000)
        dropout: as in `ResNet`. (default: 0)
        drop_path: as in `ResNet`. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth, or a configuration without `reduction`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.SEResNet(50, nclasses=10)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = _configuration("SEResNet", SE_RESNETS, depth)
    return residual_network("SEResNet", config, inchannels, nclasses, dropout, drop_path)


def SEResNeXt(
    depth: int | tuple[int, int] | ResNetConfig = 50,
    *,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float = 0.0,
    drop_path: float = 0.0,
) -> Classifier:
    """A `ResNeXt` with squeeze and excitation in each block (Hu et al. 2017, arXiv 1709.01507).

    Args:
        depth: 50, 101, (101, 64), or a configuration of one's own. (default: 50)
        inchannels: as in `ResNet`. (default: 3)
        nclasses: as in `ResNet`. (default: 1000)
        dropout: as in `ResNet`. (default: 0)
        drop_path: as in `ResNet`. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        ValueError: there is no network of this depth, or a configuration without groups or `reduction`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.SEResNeXt(50, nclasses=10)(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = _configuration("SEResNeXt", SE_RESNEXTS, depth)
    return residual_network("SEResNeXt", config, inchannels, nclasses, dropout, drop_path)
