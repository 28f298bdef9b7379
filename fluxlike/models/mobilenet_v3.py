"""MobileNetV3: inverted residuals as a search found them, with squeeze and excitation and hardswish."""

from __future__ import annotations

from dataclasses import replace

from fluxlike.layers.activations import hardsigmoid, hardswish, relu
from fluxlike.layers.basic import Activation
from fluxlike.models.classifier import Classifier
from fluxlike.models.configurations import configuration, round_channels
from fluxlike.models.inverted_residual import Block
from fluxlike.models.mobile import MobileConfig, flat_rules, mobile_network, require_width, timm_origins
from fluxlike.models.origins import Origin

__all__ = ["MobileNetV3"]

Row = tuple[int, int, int, bool, Activation, int]

#: In each stage the blocks: kernel, expanded channels, channels, squeeze and excitation, activation, stride.
LARGE: tuple[tuple[Row, ...], ...] = (
    ((3, 16, 16, False, relu, 1),),
    ((3, 64, 24, False, relu, 2), (3, 72, 24, False, relu, 1)),
    ((5, 72, 40, True, relu, 2), *[(5, 120, 40, True, relu, 1)] * 2),
    (
        (3, 240, 80, False, hardswish, 2),
        (3, 200, 80, False, hardswish, 1),
        *[(3, 184, 80, False, hardswish, 1)] * 2,
    ),
    ((3, 480, 112, True, hardswish, 1), (3, 672, 112, True, hardswish, 1)),
    ((5, 672, 160, True, hardswish, 2), *[(5, 960, 160, True, hardswish, 1)] * 2),
)
SMALL: tuple[tuple[Row, ...], ...] = (
    ((3, 16, 16, True, relu, 2),),
    ((3, 72, 24, False, relu, 2), (3, 88, 24, False, relu, 1)),
    ((5, 96, 40, True, hardswish, 2), *[(5, 240, 40, True, hardswish, 1)] * 2),
    ((5, 120, 48, True, hardswish, 1), (5, 144, 48, True, hardswish, 1)),
    ((5, 288, 96, True, hardswish, 2), *[(5, 576, 96, True, hardswish, 1)] * 2),
)


def _squeezed(expanded: int) -> int:
    return round_channels(expanded // 4, lowest=0.9)


def _configuration(rows: tuple[tuple[Row, ...], ...], hidden: int) -> MobileConfig:
    stages, inputs = [], 16
    for row in rows:
        blocks = []
        for kernel, expanded, channels, excites, activation, stride in row:
            squeezed = _squeezed(expanded) if excites else 0
            blocks.append(Block(inputs, expanded, channels, kernel, stride, squeezed, activation))
            inputs = channels
        stages.append(tuple(blocks))
    return MobileConfig(
        16,
        tuple(stages),
        head=6 * inputs,
        hidden=hidden,
        activation=hardswish,
        gate=hardsigmoid,
        eps=1e-3,
        momentum=0.01,
        family="MobileNetV3",
    )


MOBILENETS_V3 = {"small": _configuration(SMALL, 1024), "large": _configuration(LARGE, 1280)}

_NAMES = (
    (r"\.block\.", ".branch."),
    (r"\.fc1\.", ".layer.reduce."),
    (r"\.fc2\.", ".layer.expand."),
    (r"^classifier\.0\.", "classifier.hidden."),
    (r"^classifier\.3\.", "classifier.fc."),
)


def _widened(config: MobileConfig, width: float) -> MobileConfig:
    """As many times the channels."""

    def times(channels: int) -> int:
        return round_channels(channels * width, lowest=0.9)

    def widened(block: Block) -> Block:
        expanded = times(block.expanded)
        return replace(
            block,
            inputs=times(block.inputs),
            expanded=expanded,
            channels=times(block.channels),
            squeezed=_squeezed(expanded) if block.squeezed else 0,
        )

    last = config.stages[-1][-1].channels
    return replace(
        config,
        stem=times(config.stem),
        stages=tuple(tuple(map(widened, stage)) for stage in config.stages),
        head=config.head * times(last) // last,
        hidden=times(config.hidden),
    )


def MobileNetV3(
    size: str | MobileConfig = "large",
    *,
    width: float = 1.0,
    inchannels: int = 3,
    nclasses: int = 1000,
    dropout: float | None = None,
    drop_path: float = 0.0,
) -> Classifier:
    """A network of inverted residuals that a search found (Howard et al. 2019, arXiv 1905.02244).

    Its norms have eps 1e-3 and momentum 0.01, as in the authors' code and in torchvision. timm's
    ``mobilenetv3_large_100`` has eps 1e-5, so its weights fit
    ``MobileNetV3(dataclasses.replace(fluxlike.models.mobilenet_v3.MOBILENETS_V3["large"], eps=1e-5))``.

    Args:
        size: "small", "large", or a configuration of one's own. (default: "large")
        width: times the channels of each layer. (default: 1)
        inchannels: channels of the images. (default: 3)
        nclasses: how many classes. (default: 1000)
        dropout: the probability with which a feature is dropped before the last layer; None for the
            configuration's, which is 0.2. (default: None)
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0)

    Returns:
        A `Classifier`. Input: (N, inchannels, H, W), output: (N, nclasses).

    Raises:
        TypeError: a width that is no number.
        ValueError: there is no network of this size, a configuration of another family, or a width that is
            not positive.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.models.MobileNetV3("small", nclasses=10)
        >>> model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 10])
    """
    config = configuration("MobileNetV3", MOBILENETS_V3, size)
    if require_width("MobileNetV3", width) != 1:
        config = _widened(config, width)
    origins = timm_origins(config) or (Origin("torchvision", (*flat_rules(config), *_NAMES)),)
    return mobile_network("MobileNetV3", config, origins, inchannels, nclasses, dropout, drop_path)
