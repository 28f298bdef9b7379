"""Convolution, as torch computes it: cross-correlation, batch first, channels second."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.init import glorot_uniform
from fluxlike.layers.activations import identity
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Activation, Init
from fluxlike.layers.checks import explain_mixture, require_activation
from fluxlike.layers.construct import new_weight, whole_sizes
from fluxlike.layers.padding import Pad, as_pads, explain_pads, explain_window, pad_text, split_pads
from fluxlike.layers.printing import activation_text, settings_text, sizes_text
from fluxlike.layers.sizes import as_sizes, as_window, covered, refuse_shape
from fluxlike.trees.functor import functor

__all__ = ["Conv", "CrossCor", "DepthwiseConv", "explain_stack", "require_channels"]

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@autosized(in_channels=1)
@functor(children=("weight", "bias", "activation"))
class Conv:
    """A convolution over one, two or three axes, by the length of `kernel_size`.

    It is torch's cross-correlation: the kernel is not flipped, as Flux's is; `CrossCor` is its second name.
    Sizes and pads are those of Dumoulin & Visin 2016, arXiv 1603.07285.

    Args:
        kernel_size: one number an axis, so their number is that of the axes.
        in_channels: channels of the input.
        out_channels: channels of the output.
        activation: any callable. (default: the identity)
        stride: step of the kernel. (default: 1)
        pad: what is added at both ends of each axis: one number, one an axis, a pair (before, after) an
            axis, Flux's numbers (before, after, before, after, …), or `SamePad()`. (default: 0)
        dilation: distance of the kernel's taps. (default: 1)
        groups: in how many groups the channels are convolved apart. (default: 1)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: `init.glorot_uniform`)
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular". (default: "zeros")

    Attributes:
        weight: (out_channels, in_channels / groups, \\*kernel_size).
        bias: (out_channels,) or None.
        activation: the activation.
        pad: a number an axis, or a pair (before, after) an axis where the ends differ.

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: channels that `groups` does not divide, a wrong number of axes, a stride below 1; from a
            call, an input of another shape, or smaller than the kernel.

    Example:
        >>> import torch, fluxlike as fl
        >>> conv = fl.Conv((5, 5), 3, 7, fl.relu, stride=2)
        >>> conv
        Conv((5, 5), 3, 7, relu, stride=2)  # 532 parameters
        >>> conv(torch.zeros(50, 3, 100, 100)).shape
        torch.Size([50, 7, 48, 48])
        >>> fl.Conv((4,), 1, 1, pad=fl.SamePad())
        Conv((4,), 1, 1, pad=((2, 1),))  # 5 parameters
    """

    def __init__(
        self,
        kernel_size: Sequence[int],
        in_channels: int,
        out_channels: int,
        activation: Activation = identity,
        *,
        stride: int | Sequence[int] = 1,
        pad: Pad = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        init: Init = glorot_uniform,
        padding_mode: str = "zeros",
    ) -> None:
        order = "(3, 3); the order is Conv((3, 3), in_channels, out_channels)"
        kernel = as_window("kernel_size", kernel_size, order)
        n = len(kernel)
        require_activation("Conv", activation)
        require_channels("Conv", in_channels, out_channels, groups)
        if padding_mode not in _PADDING_MODES:
            raise ValueError(f"padding_mode={padding_mode!r}: write one of {', '.join(_PADDING_MODES)}")
        self.weight = new_weight("Conv", init, (out_channels, in_channels // groups, *kernel))
        self.bias = torch.zeros(out_channels) if bias else None
        self.activation = activation
        self.stride = as_sizes("stride", stride, n)
        self.dilation = as_sizes("dilation", dilation, n)
        self.pad = as_pads(pad, [size - 1 for size in covered(kernel, self.dilation)])
        self.groups, self.padding_mode = groups, padding_mode
        self._pad_inside, self._pad_before = split_pads(self.pad, before=padding_mode != "zeros")

    def __call__(self, x: Tensor) -> Tensor:
        n, channels = len(self.stride), self.weight.shape[1] * self.groups
        if not isinstance(x, Tensor) or x.ndim != n + 2 or x.shape[1] != channels:
            explain_stack("Conv", self.weight, n)
            refuse_shape("Conv", x, n, channels)
        try:
            y = _CONVOLUTIONS[n](
                self._padded(x) if self._pad_before else x,
                self.weight,
                self.bias,
                self.stride,
                self._pad_inside,
                self.dilation,
                self.groups,
            )
        except RuntimeError as error:
            self._explain(x, error)
            raise
        return self.activation(y)

    def _padded(self, x: Tensor) -> Tensor:
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return F.pad(x, self._pad_before, mode)

    def _explain(self, x: Tensor, error: RuntimeError) -> None:
        n = len(self.stride)
        explain_mixture("Conv", self.weight, x, error)
        explain_stack("Conv", self.weight, n)
        explain_pads("Conv", x, self.pad, self.padding_mode)
        explain_window("Conv", "kernel", x, covered(self.weight.shape[2:], self.dilation), self.pad)

    def extra_repr(self) -> str:
        n = len(self.stride)
        explain_stack("Conv", self.weight, n)
        out, in_, *kernel = self.weight.shape
        return (
            f"{tuple(kernel)}, {in_ * self.groups}, {out}{activation_text(self.activation)}"
            + sizes_text("stride", self.stride, (1,) * n)
            + pad_text(self.pad)
            + sizes_text("dilation", self.dilation, (1,) * n)
            + settings_text(
                groups=(self.groups, 1),
                bias=(self.bias is not None, True),
                padding_mode=(self.padding_mode, "zeros"),
            )
        )


CrossCor = Conv


@autosized(in_channels=1)
def DepthwiseConv(
    kernel_size: Sequence[int],
    in_channels: int,
    out_channels: int,
    activation: Activation = identity,
    *,
    stride: int | Sequence[int] = 1,
    pad: Pad = 0,
    dilation: int | Sequence[int] = 1,
    bias: bool = True,
    init: Init = glorot_uniform,
    padding_mode: str = "zeros",
) -> Conv:
    """A convolution of each channel by itself: a `Conv` of as many groups as channels.

    (Howard et al. 2017, arXiv 1704.04861.)

    Args:
        kernel_size: one number an axis.
        in_channels: channels of the input.
        out_channels: channels of the output, a multiple of those of the input.
        activation: any callable. (default: the identity)
        stride: step of the kernel. (default: 1)
        pad: as in `Conv`. (default: 0)
        dilation: distance of the kernel's taps. (default: 1)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: `init.glorot_uniform`)
        padding_mode: as in `Conv`. (default: "zeros")

    Returns:
        A `Conv`.

    Raises:
        ValueError: `out_channels` is not a multiple of `in_channels`, or what `Conv` refuses.

    Example:
        >>> import fluxlike as fl
        >>> fl.DepthwiseConv((3, 3), 4, 8, pad=1)
        Conv((3, 3), 4, 8, pad=1, groups=4)  # 80 parameters
    """
    require_channels("DepthwiseConv", in_channels, out_channels, 1)
    if out_channels % in_channels:
        raise ValueError(
            f"DepthwiseConv from {in_channels} to {out_channels} channels: each channel has as many outputs, "
            f"so write a multiple of {in_channels}"
        )
    return Conv(
        kernel_size,
        in_channels,
        out_channels,
        activation,
        stride=stride,
        pad=pad,
        dilation=dilation,
        groups=in_channels,
        bias=bias,
        init=init,
        padding_mode=padding_mode,
    )


def require_channels(name: str, in_channels: int, out_channels: int, groups: int) -> None:
    """Refuse channels that can't be.

    Raises:
        TypeError: sizes that are no whole numbers.
        ValueError: a number below 1, or channels that `groups` does not divide.
    """
    numbers = whole_sizes(name, (in_channels, out_channels, groups))
    for what, number in zip(("in_channels", "out_channels", "groups"), numbers, strict=True):
        if number < 1:
            raise ValueError(f"{what}={number}: write a number of at least 1")
    if in_channels % groups or out_channels % groups:
        raise ValueError(f"groups={groups} does not divide the channels {in_channels} and {out_channels}")


def explain_stack(name: str, weight: Tensor, n: int) -> None:
    """Raise an error where the weight has not the axes of one layer.

    Raises:
        ValueError: it says what to write.
    """
    if weight.ndim != n + 2:
        raise ValueError(
            f"{name} over {n} axes has a weight of {n + 2} axes, found {tuple(weight.shape)}; layers of "
            "fluxlike.stack are called under fluxlike.vmap"
        )
