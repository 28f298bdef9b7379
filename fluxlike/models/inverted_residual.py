"""The inverted residual, of which mobile networks are made, and the rows of their papers' tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fluxlike.layers.activations import identity, relu
from fluxlike.layers.basic import Activation
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain
from fluxlike.models.blocks import Norm, conv_norm, squeeze_excite
from fluxlike.models.configurations import require_counts, round_channels
from fluxlike.models.residual import Residual

__all__ = ["Block", "Excite", "Stage", "inverted_residual", "scaled", "stages_of"]

Excite = Callable[[int, int], Any]


@dataclass(frozen=True)
class Block:
    """What an inverted residual is made of.

    Attributes:
        inputs: channels of the input.
        expanded: channels in the middle; where they are those of the input, nothing expands.
        channels: channels of the output.
        kernel: side of the kernel of the convolution in the middle.
        stride: of that convolution. (default: 1)
        squeezed: channels in the middle of squeeze and excitation; 0 for none. (default: 0)
        activation: after each convolution but the last. (default: relu)
        projected: after the last convolution. (default: the identity, a linear bottleneck)
        fused: whether the first convolution is of full depth and expands, in place of two. (default: False)
        residual: whether there is a way around, where input and output are of one shape. (default: True)

    Raises:
        ValueError: a number that is none.

    Example:
        >>> import fluxlike as fl
        >>> fl.models.Block(16, 64, 24, kernel=3, stride=2).convolutions
        ('expand', 'depthwise', 'project')
    """

    inputs: int
    expanded: int
    channels: int
    kernel: int
    stride: int = 1
    squeezed: int = 0
    activation: Activation = relu
    projected: Activation = identity
    fused: bool = False
    residual: bool = True

    def __post_init__(self) -> None:
        require_counts("Block", inputs=self.inputs, expanded=self.expanded, channels=self.channels)
        require_counts("Block", kernel=self.kernel, stride=self.stride)
        require_counts("Block", least=0, squeezed=self.squeezed)

    @property
    def convolutions(self) -> tuple[str, ...]:
        """The names of the convolutions, in order."""
        expands = self.expanded != self.inputs
        if self.fused:
            return ("fused", "project") if expands else ("fused",)
        return ("expand", "depthwise", "project") if expands else ("depthwise", "project")


@dataclass(frozen=True)
class Stage:
    """Blocks alike, as a row of a paper's table says it.

    Attributes:
        kernel: side of the kernel.
        expansion: how many times as many channels as a block's input are in its middle.
        channels: of the output.
        depth: how many blocks. (default: 1)
        stride: of the first. (default: 1)
        reduction: by what squeeze and excitation divides the channels of a block's input; 0 for a stage
            without. (default: 0)
        fused: as in `Block`. (default: False)
        residual: as in `Block`. (default: True)

    Raises:
        ValueError: a number that is none.

    Example:
        >>> import fluxlike as fl
        >>> row = fl.models.Stage(3, 6, 24, depth=2, stride=2)  # a row of MobileNetV2's table
        >>> [(block.inputs, block.expanded, block.stride) for block in fl.models.stages_of([row], 16)[0]]
        [(16, 96, 2), (24, 144, 1)]
    """

    kernel: int
    expansion: int
    channels: int
    depth: int = 1
    stride: int = 1
    reduction: int = 0
    fused: bool = False
    residual: bool = True

    def __post_init__(self) -> None:
        require_counts("Stage", kernel=self.kernel, expansion=self.expansion)
        require_counts("Stage", channels=self.channels, stride=self.stride)
        require_counts("Stage", least=0, depth=self.depth, reduction=self.reduction)


def scaled(stages: Sequence[Stage], width: float, depth: float = 1.0) -> tuple[Stage, ...]:
    """Stages of more or fewer channels and blocks.

    Args:
        stages: the stages.
        width: times the channels, which 8 divides afterwards.
        depth: times the blocks, rounded up. (default: 1)
    """
    return tuple(
        replace(
            stage,
            channels=round_channels(stage.channels * width, lowest=0.9),
            depth=math.ceil(stage.depth * depth),
        )
        for stage in stages
    )


def stages_of(
    stages: Sequence[Stage],
    inputs: int,
    activation: Activation = relu,
    projected: Activation = identity,
) -> tuple[tuple[Block, ...], ...]:
    """The blocks of each stage.

    Args:
        stages: the stages.
        inputs: channels of the first one's input.
        activation: of each block. (default: relu)
        projected: of each block. (default: the identity)

    Example:
        >>> import fluxlike as fl
        >>> rows = [fl.models.Stage(3, 1, 16), fl.models.Stage(5, 6, 24, depth=2, stride=2)]
        >>> stages = fl.models.stages_of(rows, 8)
        >>> model = fl.models.MobileNetV2(fl.models.MobileConfig(8, stages), nclasses=10)
        >>> [len(stage) for stage in stages], model.backbone.names
        ([1, 2], ('stem', 'stage1', 'stage2'))
    """
    found = []
    for stage in stages:
        blocks = []
        for i in range(stage.depth):
            block = Block(
                inputs,
                inputs * stage.expansion,
                stage.channels,
                stage.kernel,
                stage.stride if i == 0 else 1,
                max(1, inputs // stage.reduction) if stage.reduction else 0,
                activation,
                projected,
                stage.fused,
                stage.residual,
            )
            blocks.append(block)
            inputs = stage.channels
        found.append(tuple(blocks))
    return tuple(found)


def inverted_residual(
    block: Block, *, norm: Norm = BatchNorm, excite: Excite = squeeze_excite, drop_path: float = 0.0
) -> Residual | Chain:
    """A residual block that is wide in the middle (Sandler et al. 2018, arXiv 1801.04381, section 3.3).

    Args:
        block: what it is made of.
        norm: makes a norm from the number of channels and the activation. (default: BatchNorm)
        excite: makes squeeze and excitation from the channels and the squeezed ones.
            (default: `squeeze_excite`)
        drop_path: the probability with which an example goes around it. (default: 0)

    Returns:
        A `Residual`, or where input and output differ a Chain of the one step ``branch``. The branch is a
        Chain of ``expand``, ``depthwise``, ``excite`` and ``project``, or of ``fused`` and ``project``, as
        far as the block has them. (N, inputs, H, W) → (N, channels, H/stride, W/stride).

    Example:
        >>> import torch
        >>> from fluxlike.models.inverted_residual import Block, inverted_residual
        >>> layer = inverted_residual(Block(16, 64, 16, kernel=3, squeezed=4))
        >>> layer(torch.zeros(1, 16, 8, 8)).shape
        torch.Size([1, 16, 8, 8])
        >>> layer.branch.names
        ('expand', 'depthwise', 'excite', 'project')
    """
    wide = block.expanded if "project" in block.convolutions else block.channels
    layers: dict[str, Any] = {}
    for name in block.convolutions:
        if name == "project" and block.squeezed:
            layers["excite"] = excite(wide, block.squeezed)
        inputs = block.inputs if not layers else wide
        layers[name] = conv_norm(
            1 if name in ("expand", "project") else block.kernel,
            inputs,
            block.channels if name == "project" else wide,
            block.projected if name == "project" else block.activation,
            stride=block.stride if name in ("depthwise", "fused") else 1,
            groups=inputs if name == "depthwise" else 1,
            norm=norm,
        )
    branch = Chain(**layers)
    if block.residual and block.stride == 1 and block.inputs == block.channels:
        return Residual(branch, drop_path=drop_path)
    return Chain(branch=branch)
