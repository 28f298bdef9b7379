"""The transpose of a convolution: from the size of its output to that of its input."""

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
from fluxlike.layers.construct import new_weight
from fluxlike.layers.conv import explain_stack, require_channels
from fluxlike.layers.padding import Pad, SamePad, as_pads, pad_text, pads_by_axis
from fluxlike.layers.printing import activation_text, settings_text, sizes_text
from fluxlike.layers.sizes import as_sizes, as_window, covered, refuse_shape
from fluxlike.trees.functor import functor

__all__ = ["ConvTranspose"]

_TRANSPOSES = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@autosized(in_channels=1)
@functor(children=("weight", "bias", "activation"))
class ConvTranspose:
    """A transposed convolution: the gradient of a `Conv`, from its outputs to its inputs, as a layer.

    (Dumoulin & Visin 2016, arXiv 1603.07285.) An axis of n becomes
    ``(n - 1)·stride - pads + dilation·(kernel - 1) + 1 + outpad``.

    Args:
        kernel_size: one number an axis, so their number is that of the axes.
        in_channels: channels of the input.
        out_channels: channels of the output.
        activation: any callable. (default: the identity)
        stride: distance of the inputs' places in the output. (default: 1)
        pad: what is taken away at both ends of each axis of the output: one number, one an axis, a pair
            (before, after) an axis, or `SamePad()`, which makes the output n · stride. (default: 0)
        outpad: what the output is longer at the end of each axis, less than the stride or the dilation.
            (default: 0)
        dilation: distance of the kernel's taps. (default: 1)
        groups: in how many groups the channels are convolved apart. (default: 1)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: `init.glorot_uniform`)

    Attributes:
        weight: (in_channels, out_channels / groups, \\*kernel_size).
        bias: (out_channels,) or None.
        activation: the activation.
        pad: a number an axis, or a pair (before, after) an axis where the ends differ.

    Input and output: (N, C, L), (N, C, H, W) or (N, C, D, H, W).

    Raises:
        ValueError: channels that `groups` does not divide, a wrong number of axes, a stride below 1, an
            `outpad` that is too large; from a call, an input of another shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> up = fl.ConvTranspose((4, 4), 8, 3, fl.relu, stride=2, pad=fl.SamePad())
        >>> up
        ConvTranspose((4, 4), 8, 3, relu, stride=2, pad=1)  # 387 parameters
        >>> up(torch.zeros(1, 8, 10, 10)).shape
        torch.Size([1, 3, 20, 20])
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
        outpad: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        init: Init = glorot_uniform,
    ) -> None:
        order = "(3, 3); the order is ConvTranspose((3, 3), in_channels, out_channels)"
        kernel = as_window("kernel_size", kernel_size, order)
        n = len(kernel)
        require_activation("ConvTranspose", activation)
        require_channels("ConvTranspose", in_channels, out_channels, groups)
        self.weight = new_weight("ConvTranspose", init, (in_channels, out_channels // groups, *kernel))
        self.bias = torch.zeros(out_channels) if bias else None
        self.activation = activation
        self.stride = as_sizes("stride", stride, n)
        self.dilation = as_sizes("dilation", dilation, n)
        self.outpad, self.groups = as_sizes("outpad", outpad, n, least=0), groups
        excess = [r - s for r, s in zip(covered(kernel, self.dilation), self.stride, strict=True)]
        self.pad = as_pads(pad, [max(e, 0) for e in excess])
        if isinstance(pad, SamePad):  # a kernel smaller than its stride leaves the output too short
            self.outpad = tuple(o + max(-e, 0) for o, e in zip(self.outpad, excess, strict=True))
        self._require_outpad(outpad)
        ends = pads_by_axis(self.pad)
        self._pad_inside = tuple(map(min, ends))
        self._cut = any(lo != hi for lo, hi in ends)

    def _require_outpad(self, written: int | Sequence[int]) -> None:
        if any(o >= max(s, d) for o, s, d in zip(self.outpad, self.stride, self.dilation, strict=True)):
            raise ValueError(
                f"outpad={written!r}: write less than the stride {self.stride} or the dilation "
                f"{self.dilation} of the same axis"
            )

    def __call__(self, x: Tensor) -> Tensor:
        n, channels = len(self.stride), self.weight.shape[0]
        if not isinstance(x, Tensor) or x.ndim != n + 2 or x.shape[1] != channels:
            explain_stack("ConvTranspose", self.weight, n)
            refuse_shape("ConvTranspose", x, n, channels)
        try:
            y = _TRANSPOSES[n](
                x,
                self.weight,
                self.bias,
                self.stride,
                self._pad_inside,
                self.outpad,
                self.groups,
                self.dilation,
            )
            y = self._without_uneven_ends(y) if self._cut else y
        except RuntimeError as error:
            self._explain(x, error)
            raise
        return self.activation(y)

    def _without_uneven_ends(self, y: Tensor) -> Tensor:
        """Take away what the kernel, which treats both ends alike, has left."""
        for axis, (lo, hi) in enumerate(pads_by_axis(self.pad), start=2):
            if lo != hi:
                inside = min(lo, hi)
                y = y.narrow(axis, lo - inside, y.shape[axis] - abs(lo - hi))
        return y

    def _explain(self, x: Tensor, error: RuntimeError) -> None:
        explain_mixture("ConvTranspose", self.weight, x, error)
        explain_stack("ConvTranspose", self.weight, len(self.stride))
        reach = covered(self.weight.shape[2:], self.dilation)
        sizes = tuple(
            (n - 1) * s + r + o - lo - hi
            for n, s, r, o, (lo, hi) in zip(
                x.shape[2:], self.stride, reach, self.outpad, pads_by_axis(self.pad), strict=True
            )
        )
        if any(size < 1 for size in sizes):
            raise ValueError(
                f"ConvTranspose makes of the input's {tuple(x.shape[2:])} an output of {sizes}: its pad "
                f"{self.pad} takes away more than there is; write a smaller one"
            ) from error

    def extra_repr(self) -> str:
        n = len(self.stride)
        explain_stack("ConvTranspose", self.weight, n)
        in_, out, *kernel = self.weight.shape
        return (
            f"{tuple(kernel)}, {in_}, {out * self.groups}{activation_text(self.activation)}"
            + sizes_text("stride", self.stride, (1,) * n)
            + pad_text(self.pad)
            + sizes_text("outpad", self.outpad, (0,) * n)
            + sizes_text("dilation", self.dilation, (1,) * n)
            + settings_text(groups=(self.groups, 1), bias=(self.bias is not None, True))
        )
