"""Errors of layers: which layer of the model, what it got, what it takes."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["LayerError", "require_features"]


class LayerError(RuntimeError):
    """A layer inside a model failed.

    Attributes:
        path: the path of the layer in the outermost Chain, such as ``.layers[2]``.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message

    @classmethod
    def at(cls, step: str, layer: Any, x: Any, error: Exception) -> LayerError:
        """The error of a layer one step below, with what it got; further steps go in front."""
        if isinstance(error, LayerError):
            return cls(step + error.path, error.message)
        described = repr(layer).split("  #")[0] if "\n" not in repr(layer) else type(layer).__name__
        name = getattr(layer, "__name__", described)
        return cls(step, f"{name} got {_say(x)} and failed: {type(error).__name__}: {error}")


def _say(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)} and {x.dtype}"
    return f"a {type(x).__name__}"


def require_features(
    name: str, x: Any, axis: int, size: int, wanted: str, ndims: tuple[int, ...] = ()
) -> None:
    """Refuse an input whose `axis` is not of length `size`, or whose rank is not among `ndims`.

    Raises:
        TypeError: `x` is no tensor.
        ValueError: the shape is not as `wanted` says.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor of shape {wanted}, found {type(x).__name__}")
    if ndims and x.ndim not in ndims:
        raise ValueError(f"{name} takes the shape {wanted}, found {tuple(x.shape)}")
    if x.ndim <= (axis if axis >= 0 else -axis - 1) or x.shape[axis] != size:
        raise ValueError(f"{name} takes the shape {wanted}, found {tuple(x.shape)}")
