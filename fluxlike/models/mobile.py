"""A network of inverted residuals, and how timm names its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

from fluxlike.layers.activations import flatten, relu, sigmoid
from fluxlike.layers.adaptive_pool import AdaptiveMeanPool
from fluxlike.layers.basic import Activation, Dense
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain
from fluxlike.layers.dropout import Dropout
from fluxlike.models.blocks import conv_norm, depth_rates, squeeze_excite
from fluxlike.models.classifier import Classifier, pooled_classifier
from fluxlike.models.configurations import require_counts
from fluxlike.models.inverted_residual import Block, inverted_residual
from fluxlike.models.origins import Origin, Rules, Tensors

__all__ = ["MobileConfig", "flat_rules", "mobile_network", "of_width", "require_width", "timm_origins"]


@dataclass(frozen=True)
class MobileConfig:
    """What a network of inverted residuals is made of.

    Attributes:
        stem: channels of the first convolution, 3×3 of stride 2.
        stages: the blocks of each stage.
        head: channels of the convolution after the last stage, 1×1; 0 for none. (default: 0)
        hidden: features of the classifier's hidden layer; 0 for none. (default: 0)
        activation: of stem, head and hidden layer. (default: relu)
        excite_activation: between the two layers of squeeze and excitation. (default: relu)
        gate: of the scales that squeeze and excitation finds. (default: sigmoid)
        dropout: the probability with which a feature is dropped before the last layer. (default: 0.2)
        eps: of the norms. (default: 1e-5)
        momentum: of the norms. (default: 0.1)
        family: the network that is published with this configuration; "" for one of one's own. (default: "")

    Raises:
        ValueError: a number that is none, there is no block, or one takes other channels than the layer
            before it gives.
    """

    stem: int
    stages: tuple[tuple[Block, ...], ...]
    head: int = 0
    hidden: int = 0
    activation: Activation = relu
    excite_activation: Activation = relu
    gate: Activation = sigmoid
    dropout: float = 0.2
    eps: float = 1e-5
    momentum: float = 0.1
    family: str = ""

    def __post_init__(self) -> None:
        require_counts("MobileConfig", stem=self.stem)
        require_counts("MobileConfig", least=0, head=self.head, hidden=self.hidden)
        if not self.stages or not all(self.stages):
            raise ValueError("MobileConfig takes stages of at least one block each, found one without")
        channels = self.stem
        for number, stage in enumerate(self.stages, 1):
            for i, block in enumerate(stage):
                if block.inputs != channels:
                    raise ValueError(
                        f"MobileConfig: block {i} of stage {number} takes {block.inputs} channels, the layer "
                        f"before it gives {channels}; write Block(inputs={channels}, …)"
                    )
                channels = block.channels

    @property
    def features(self) -> int:
        """How many channels the backbone gives."""
        return self.head or self.stages[-1][-1].channels


def mobile_network(
    family: str,
    config: MobileConfig,
    origins: tuple[Origin, ...],
    inchannels: int,
    nclasses: int,
    dropout: float | None,
    drop_path: float = 0.0,
) -> Classifier:
    """A network of inverted residuals.

    Args:
        family: the model's name, for errors.
        config: what it is made of.
        origins: the libraries whose weights it can have.
        inchannels: channels of the images.
        nclasses: how many classes.
        dropout: the probability with which a feature is dropped; None for the configuration's.
        drop_path: the probability with which an example goes around the last block; it falls in equal steps
            to 0 for the first. (default: 0)

    Raises:
        ValueError: the configuration is that of another family, or a number that is none.
    """
    if config.family not in ("", family):
        raise ValueError(
            f"{family} takes a configuration of its own or of one's own, found one of {config.family}; write "
            f"{config.family}(config), or for a network that is neither {family}(dataclasses.replace(config, "
            'family=""))'
        )
    require_counts(family, inchannels=inchannels, nclasses=nclasses)
    norm = partial(BatchNorm, eps=config.eps, momentum=config.momentum)
    excite = partial(squeeze_excite, activation=config.excite_activation, gate=config.gate)
    rates = iter(depth_rates(drop_path, sum(map(len, config.stages))))
    steps: dict[str, Any] = {
        "stem": conv_norm(3, inchannels, config.stem, config.activation, stride=2, norm=norm)
    }
    for number, stage in enumerate(config.stages, 1):
        blocks = (
            inverted_residual(block, norm=norm, excite=excite, drop_path=next(rates)) for block in stage
        )
        steps[f"stage{number}"] = Chain(*blocks)
    if config.head:
        channels = config.stages[-1][-1].channels
        steps["head"] = conv_norm(1, channels, config.head, config.activation, norm=norm)
    return Classifier(
        Chain(**steps),
        _classifier(config, nclasses, config.dropout if dropout is None else dropout),
        origins=origins,
    )


def _classifier(config: MobileConfig, nclasses: int, dropout: float) -> Chain:
    if not config.hidden:
        return pooled_classifier(config.features, nclasses, dropout)
    return Chain(
        pool=AdaptiveMeanPool((1, 1)),
        flatten=flatten,
        hidden=Dense(config.features, config.hidden, config.activation),
        dropout=Dropout(dropout),
        fc=Dense(config.hidden, nclasses),
    )


def require_width(family: str, width: float) -> float:
    """The width, if it is one.

    Raises:
        TypeError: it is no number.
        ValueError: it is not positive.
    """
    if not isinstance(width, Real) or isinstance(width, bool):
        raise TypeError(
            f"{family} takes a width, such as 0.5 for half as many channels, found {type(width).__name__}"
        )
    if not 0 < width < float("inf"):
        raise ValueError(
            f"{family} takes a positive width, such as 0.5 for half as many channels, found {width}"
        )
    return width


def of_width(family: str, width: float | MobileConfig, make: Callable[[float], MobileConfig]) -> MobileConfig:
    """The configuration of a family at a width, or the one that is given.

    Args:
        family: the model's name, for the error.
        width: times the channels, or a configuration.
        make: makes the configuration from the width.

    Raises:
        TypeError: it is neither.
        ValueError: the width is not positive.
    """
    return width if isinstance(width, MobileConfig) else make(require_width(family, width))


def flat_rules(config: MobileConfig) -> Rules:
    """The rules for a library in which stem, all blocks and head are ``features.0``, ``features.1``, …"""
    places = [f"stage{s}.{i}." for s, stage in enumerate(config.stages, 1) for i in range(len(stage))]
    return tuple(
        (rf"^features\.{n}\.", f"backbone.{place}") for n, place in enumerate(["stem.", *places, "head."])
    )


_CONVOLUTIONS_OF_TIMM = {
    ("expand", "depthwise", "project"): ("conv_pw", "conv_dw", "conv_pwl"),
    ("depthwise", "project"): ("conv_dw", "conv_pw"),
    ("fused", "project"): ("conv_exp", "conv_pwl"),
    ("fused",): ("conv",),
}


def timm_origins(config: MobileConfig) -> tuple[Origin, ...]:
    """timm, where it has a network of the configuration's eps; in another its weights give other scores."""
    if config.eps != 1e-5:
        return ()
    stages: list[tuple[str, str]] = []
    for s, stage in enumerate(config.stages):
        place = f"stage{s + 1}."
        stages.append((rf"^blocks\.{s}\.(\d+)\.", rf"backbone.{place}\1.branch."))
        ours = stage[0].convolutions
        for number, (name, theirs) in enumerate(zip(ours, _CONVOLUTIONS_OF_TIMM[ours], strict=True), 1):
            stages.append((rf"{place}(\d+)\.branch\.{theirs}\.", rf"{place}\1.branch.{name}.conv."))
            stages.append((rf"{place}(\d+)\.branch\.bn{number}\.", rf"{place}\1.branch.{name}.norm."))
    if config.hidden:
        head = rf"^blocks\.{len(config.stages)}\.0\."
        last = [(rf"{head}conv\.", "backbone.head.conv."), (rf"{head}bn1\.", "backbone.head.norm.")]
        last.append((r"^conv_head\.", "classifier.hidden."))
    else:
        last = [(r"^conv_head\.", "backbone.head.conv."), (r"^bn2\.", "backbone.head.norm.")]
    rules = (
        (r"^classifier\.", "classifier.fc."),
        (r"^conv_stem\.", "backbone.stem.conv."),
        (r"^bn1\.", "backbone.stem.norm."),
        *last,
        *stages,
        (r"se\.conv_(reduce|expand)", r"excite.layer.\1"),
    )
    return (Origin("timm", rules, _hidden_layer if config.hidden else None),)


def _hidden_layer(tensors: Tensors) -> Tensors:
    """timm's hidden layer is a convolution of one place."""
    return {name: x.flatten(1) if name == "conv_head.weight" else x for name, x in tensors.items()}
