"""What normalisation layers share: how wide they count, how their settings print."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EPS", "require_shape", "settings_text", "widened"]

EPS = 1e-5


def widened(x: Tensor, own: Tensor | None) -> Tensor:
    """An input of 16 bits in the dtype of the layer's own tensors, or in float32 where it has none."""
    if x.dtype is torch.float16 or x.dtype is torch.bfloat16:
        return x.to(torch.float32 if own is None else own.dtype)
    return x


def require_shape(name: str, x: object, shape: tuple[int, ...]) -> None:
    """Refuse an input whose last axes are not of this shape.

    Raises:
        TypeError: `x` is no tensor.
        ValueError: other last axes.
    """
    wanted = f"(…, {', '.join(map(str, shape))})"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor of shape {wanted}, found {type(x).__name__}")
    if x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
        raise ValueError(f"{name} takes the shape {wanted}, found {tuple(x.shape)}")


def settings_text(**settings: tuple[object, object]) -> str:
    """Settings as further arguments in print, each given as its value and its default."""
    return "".join(f", {name}={value!r}" for name, (value, default) in settings.items() if value != default)
