"""Pieces of which many networks are made: a convolution with its norm, squeeze and excitation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluxlike.init import kaiming_normal
from fluxlike.layers.activations import relu, sigmoid
from fluxlike.layers.adaptive_pool import AdaptiveMeanPool
from fluxlike.layers.basic import Activation
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain, SkipConnection
from fluxlike.layers.conv import Conv
from fluxlike.layers.dropout import require_probability
from fluxlike.layers.padding import Pad

__all__ = ["concatenated", "conv_norm", "depth_rates", "squeeze_excite"]

Norm = Callable[[int, Activation], Any]


def conv_norm(
    kernel_size: int | tuple[int, int],
    in_channels: int,
    out_channels: int,
    activation: Activation = relu,
    *,
    stride: int | tuple[int, int] = 1,
    pad: Pad | None = None,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
    norm: Norm = BatchNorm,
) -> Chain:
    """A convolution, its norm and an activation, as most networks have them since 2015.

    Args:
        kernel_size: one number for a square.
        in_channels: channels of the input.
        out_channels: channels of the output.
        activation: any callable, after the norm. (default: relu)
        stride: step of the kernel. (default: 1)
        pad: as in `Conv`. (default: half the kernel, so that at stride 1 the size stays)
        dilation: distance of the kernel's taps. (default: 1)
        groups: in how many groups the channels are convolved apart. (default: 1)
        bias: whether the convolution has a bias, which a norm makes useless. (default: False)
        norm: makes a norm from the number of channels and the activation. (default: BatchNorm)

    Returns:
        A Chain of the steps ``conv`` and ``norm``. (N, in_channels, H, W) → (N, out_channels, H', W').

    Example:
        >>> import fluxlike as fl
        >>> conv, norm = fl.models.conv_norm(3, 16, 32, stride=2)
        >>> conv
        Conv((3, 3), 16, 32, stride=2, pad=1, bias=False)  # 4_608 parameters
        >>> norm
        BatchNorm(32, relu)  # 64 parameters, 64 non-trainable
    """
    kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    same = tuple(dilation * (k - 1) // 2 for k in kernel)
    conv = Conv(
        kernel,
        in_channels,
        out_channels,
        stride=stride,
        pad=same if pad is None else pad,
        dilation=dilation,
        groups=groups,
        bias=bias,
        init=kaiming_normal,
    )
    return Chain(conv=conv, norm=norm(out_channels, activation))


def squeeze_excite(
    channels: int, reduced: int, activation: Activation = relu, gate: Activation = sigmoid
) -> SkipConnection:
    """Each channel scaled by what the means of all channels say (Hu et al. 2017, arXiv 1709.01507).

    Args:
        channels: of the input and the output.
        reduced: channels between the two layers that find the scales.
        activation: any callable, between the two. (default: relu)
        gate: any callable, of the scales. (default: sigmoid)

    Returns:
        A SkipConnection around a Chain of the steps ``pool``, ``reduce`` and ``expand``. (N, channels, H, W)
        → the same.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.models.squeeze_excite(32, 8)(torch.ones(1, 32, 5, 5)).shape
        torch.Size([1, 32, 5, 5])
    """
    scales = Chain(
        pool=AdaptiveMeanPool((1, 1)),
        reduce=Conv((1, 1), channels, reduced, activation),
        expand=Conv((1, 1), reduced, channels, gate),
    )
    return SkipConnection(scales, torch.mul)


def concatenated(*xs: Tensor) -> Tensor:
    """Feature maps with their channels one after another, what joins the layers of a `Parallel`.

    Args:
        xs: (N, C₁, …), (N, C₂, …), and so on.

    Returns:
        (N, C₁ + C₂ + …, …).

    Example:
        >>> import torch
        >>> concatenated(torch.ones(1, 2, 3, 3), torch.ones(1, 4, 3, 3)).shape
        torch.Size([1, 6, 3, 3])
    """
    return torch.cat(xs, 1)


def depth_rates(last: float, depth: int) -> list[float]:
    """The rates of stochastic depth of a network's blocks: from 0 for the first in equal steps to the last.

    (Huang et al. 2016, arXiv 1603.09382, section 3.)

    Args:
        last: the probability with which an example goes around the last block.
        depth: how many blocks.

    Raises:
        TypeError: `last` is no number.
        ValueError: it is outside [0, 1].

    Example:
        >>> import fluxlike as fl
        >>> fl.models.depth_rates(0.2, 3)
        [0.0, 0.1, 0.2]
    """
    require_probability("depth_rates", "drop_path", last)
    return [last * i / max(depth - 1, 1) for i in range(depth)]
