"""Tensors and figures as pictures of bytes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike.optional import optional

__all__ = ["figure_pixels", "pixels"]

_ACROSS = 8  # pictures beside each other


def pixels(image: Tensor, /) -> np.ndarray:
    """Pictures as bytes of shape (H, W, C), several beside and under each other.

    Args:
        image: uint8, or floats from 0 to 1, of shape (H, W), (C, H, W) or (N, C, H, W); C is 1 or 3.

    Raises:
        TypeError: it is no such tensor.
        ValueError: its shape is another, or a float is not from 0 to 1.

    Example:
        >>> import torch
        >>> pixels(torch.rand(10, 3, 4, 5)).shape
        (8, 40, 3)
    """
    if not isinstance(image, Tensor) or not (image.is_floating_point() or image.dtype is torch.uint8):
        found = image.dtype if isinstance(image, Tensor) else f"a {type(image).__name__}"
        raise TypeError(f"a picture is a tensor of floats from 0 to 1, or of uint8; found {found}")
    shape = tuple(image.shape)
    if not 2 <= image.ndim <= 4 or (image.ndim > 2 and shape[-3] not in (1, 3)) or not image.numel():
        raise ValueError(
            f"a picture of shape {shape}; write (C, H, W) with 1 or 3 channels, (H, W), or (N, C, H, W) for "
            "several"
        )
    many = image.detach().cpu().reshape(-1, *(shape[-3:] if image.ndim > 2 else (1, *shape)))
    if many.is_floating_point():
        low, high = many.min().item(), many.max().item()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"a picture of floats has them from 0 to 1, found {low:.3g} to {high:.3g}; undo the "
                "normalisation, or write (x - x.min()) / (x.max() - x.min())"
            )
        many = (many.float() * 255).round().to(torch.uint8)
    return _grid(many).movedim(0, -1).contiguous().numpy()


def figure_pixels(figure: Any, /) -> np.ndarray:
    """A figure of matplotlib as bytes of shape (H, W, 4), drawn without pyplot.

    Raises:
        TypeError: it is no figure.
    """
    figures = optional("matplotlib.figure", "a log of figures")
    if not isinstance(figure, figures.Figure):
        raise TypeError(f"a figure is one of matplotlib, found a {type(figure).__name__}")
    images = optional("PIL.Image", "a log of figures")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=figure.dpi)
    with images.open(buffer) as image:
        return np.asarray(image.convert("RGBA"))


def _grid(many: Tensor) -> Tensor:
    number, channels, high, wide = many.shape
    across = min(number, _ACROSS)
    down = -(-number // across)
    room = many.new_zeros(down * across, channels, high, wide)
    room[:number] = many
    rows = room.reshape(down, across, channels, high, wide).permute(2, 0, 3, 1, 4)
    return rows.reshape(channels, down * high, across * wide)
