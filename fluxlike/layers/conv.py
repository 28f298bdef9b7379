"""Convolution, as torch computes it: cross-correlation, batch first, channels second."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.init import glorot_uniform
from fluxlike.layers.activations import identity
from fluxlike.layers.basic import Activation, Init, activation_text
from fluxlike.layers.errors import explain_mixture, require_activation, require_features
from fluxlike.trees.functor import functor

__all__ = ["Conv", "as_sizes", "axes_text", "sizes_text"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def as_sizes(name: str, value: int | Sequence[int], n: int) -> tuple[int, ...]:
    """One number for each of n axes.

    Raises:
        ValueError: another number of them.
    """
    sizes = (value,) * n if isinstance(value, int) else tuple(value)
    if len(sizes) != n:
        raise ValueError(f"{name}={value!r}: write one number, or {n} of them, one an axis")
    return sizes


def sizes_text(name: str, sizes: Sequence[int], default: Sequence[int]) -> str:
    """A setting as one more argument in print, nothing for the default."""
    if tuple(sizes) == tuple(default):
        return ""
    return f", {name}={sizes[0] if len(set(sizes)) == 1 else tuple(sizes)}"


def axes_text(n: int) -> str:
    """The spatial axes in print."""
    return {1: "L", 2: "H, W", 3: "D, H, W"}[n]


@functor(children=("weight", "bias", "activation"))
class Conv:
    """A convolution over one, two or three axes, by the length of `kernel_size`.

    It is torch's cross-correlation: the kernel is not flipped, as Flux's is.

    Args:
        kernel_size: one number an axis, so their number is that of the axes.
        in_channels: channels of the input.
        out_channels: channels of the output.
        activation: any callable. (default: the identity)
        stride: step of the kernel. (default: 1)
        pad: zeros added at both ends of each axis. (default: 0)
        dilation: distance of the kernel's taps. (default: 1)
        groups: in how many groups the channels are convolved apart. (default: 1)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: `init.glorot_uniform`)

    Attributes:
        weight: (out_channels, in_channels / groups, \\*kernel_size).
        bias: (out_channels,) or None.
        activation: the activation.

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: channels that `groups` does not divide, a wrong number of axes; from a call, an
            input of another shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> conv = fl.Conv((5, 5), 3, 7, fl.relu, stride=2)
        >>> conv
        Conv((5, 5), 3, 7, relu, stride=2)  # 532 parameters
        >>> conv(torch.zeros(50, 3, 100, 100)).shape
        torch.Size([50, 7, 48, 48])
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        in_channels: int,
        out_channels: int,
        activation: Activation = identity,
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        init: Init = glorot_uniform,
    ) -> None:
        if isinstance(kernel_size, int) or len(kernel_size) not in _CONVOLUTIONS:
            raise ValueError(
                f"kernel_size={kernel_size!r}: write one number an axis, such as (3, 3); the order is "
                "Conv((3, 3), in_channels, out_channels)"
            )
        require_activation("Conv", activation)
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"groups={groups} does not divide the channels {in_channels} and {out_channels}")
        n = len(kernel_size)
        self.weight = init((out_channels, in_channels // groups, *kernel_size))
        self.bias = torch.zeros(out_channels) if bias else None
        self.activation = activation
        self.stride = as_sizes("stride", stride, n)
        self.pad = as_sizes("pad", pad, n)
        self.dilation = as_sizes("dilation", dilation, n)
        self.groups = groups

    def __call__(self, x: Tensor) -> Tensor:
        n, channels = self.weight.ndim - 2, self.weight.shape[1] * self.groups
        if not isinstance(x, Tensor) or x.ndim != n + 2 or x.shape[1] != channels:
            require_features("Conv", x, 1, channels, f"(N, {channels}, {axes_text(n)})", (n + 2,))
        convolve = _CONVOLUTIONS[n]
        try:
            y = convolve(x, self.weight, self.bias, self.stride, self.pad, self.dilation, self.groups)
        except RuntimeError as error:
            explain_mixture("Conv", self.weight, x, error)
            raise
        return self.activation(y)

    def extra_repr(self) -> str:
        out, in_, *kernel = self.weight.shape
        ones = (1,) * len(kernel)
        return (
            f"{tuple(kernel)}, {in_ * self.groups}, {out}{activation_text(self.activation)}"
            + sizes_text("stride", self.stride, ones)
            + sizes_text("pad", self.pad, (0,) * len(kernel))
            + sizes_text("dilation", self.dilation, ones)
            + (f", groups={self.groups}" if self.groups > 1 else "")
            + (", bias=False" if self.bias is None else "")
        )
