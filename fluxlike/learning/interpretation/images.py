"""Batches of inputs as pictures: checked, denormalised, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Denormalise", "pictures"]

#: The mean and the standard deviation by which images were normalised, a number or one a channel.
Denormalise = tuple[float | Sequence[float] | Tensor, float | Sequence[float] | Tensor]

_ROUNDING = 0.01


def pictures(images: Any, denormalise: Denormalise | None, /) -> Tensor:
    """Images to be drawn: float32 from 0 to 1, of shape (N, H, W, 1) or (N, H, W, 3), in main memory.

    Args:
        images: (N, C, H, W), with C 1 or 3, or (N, H, W); floats from 0 to 1, or whole numbers of uint8.
        denormalise: mean and standard deviation, to undo ``(x - mean) / std``; or None.

    Raises:
        ValueError: they are no images, or of numbers that are no colours.
    """
    if not isinstance(images, Tensor) or images.ndim not in (3, 4):
        raise ValueError(_no_images(images))
    x = images.detach().cpu()
    x = x[:, None] if x.ndim == 3 else x
    if x.shape[1] not in (1, 3) or not (x.is_floating_point() or x.dtype == torch.uint8):
        raise ValueError(_no_images(images))
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    if denormalise is not None:
        mean, std = (_each_channel(part, x.shape[1]) for part in denormalise)
        x = x * std + mean
    _require_colours(x, denormalise)
    return x.clamp(0, 1).permute(0, 2, 3, 1)


def _no_images(found: Any) -> str:
    is_tensor = isinstance(found, Tensor)
    what = f"{found.dtype} of the shape {tuple(found.shape)}" if is_tensor else type(found).__name__
    return (
        f"the inputs are {what}; pictures are drawn of images (N, C, H, W) with 1 or 3 channels, floats from "
        "0 to 1 or uint8; for others print top_losses() and report()"
    )


def _each_channel(part: Any, channels: int) -> Tensor:
    values = torch.as_tensor(part, dtype=torch.float32).cpu().reshape(-1)
    if len(values) not in (1, channels):
        raise ValueError(f"denormalise has {len(values)} numbers for images of {channels} channels")
    return values.reshape(-1, 1, 1)


def _require_colours(x: Tensor, denormalise: Denormalise | None) -> None:
    low, high = (x.min().item(), x.max().item()) if x.numel() else (0.0, 0.0)
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return
    hint = (
        "denormalise= has other numbers than those they were normalised by"
        if denormalise is not None
        else "write denormalise=(mean, std), with those they were normalised by"
    )
    raise ValueError(f"the images reach from {low:.3g} to {high:.3g}, colours from 0 to 1; {hint}")
