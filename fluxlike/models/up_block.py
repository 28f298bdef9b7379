"""The step back up of UNet and of detectors: a small map, resized to a larger one and joined with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.compose import Chain
from fluxlike.layers.errors import within
from fluxlike.models.blocks import conv_norm
from fluxlike.trees.functor import functor

__all__ = ["UpBlock"]


@functor(children=("convs",))
class UpBlock:
    """A map, resized to the size of a larger one and joined with it, and two convolutions.

    Args:
        channels: of the smaller map.
        skipped: channels of the larger.
        outputs: channels of the result.

    Attributes:
        convs: a Chain of the steps ``conv1`` and ``conv2``.

    Input: (N, channels, H', W') and (N, skipped, H, W). Output: (N, outputs, H, W).

    Example:
        >>> import torch, fluxlike as fl
        >>> UpBlock(8, 4, 6)(torch.zeros(1, 8, 3, 3), torch.zeros(1, 4, 5, 7)).shape
        torch.Size([1, 6, 5, 7])
    """

    def __init__(self, channels: int, skipped: int, outputs: int) -> None:
        self.convs = Chain(
            conv1=conv_norm(3, channels + skipped, outputs), conv2=conv_norm(3, outputs, outputs)
        )

    def __call__(self, x: Tensor, skip: Tensor) -> Tensor:
        # "nearest": on CUDA the gradient of the linear modes adds up in any order, so runs would differ
        x = F.interpolate(x, size=skip.shape[2:], mode="nearest")
        return within(".convs", self.convs, torch.cat((x, skip), 1))
