"""Errors of layers: which layer of the model, what it got, what it takes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["LayerError", "explain_mixture", "require_activation", "require_features"]


class LayerError(RuntimeError):
    """A layer inside a model failed.

    Attributes:
        path: the path of the layer in the outermost Chain, such as ``.layers[2]``.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.path, self.message = path, message

    def below(self, step: str) -> LayerError:
        """The same error, seen from a node one step further up that calls the layer."""
        return LayerError(step + self.path, self.message)

    @staticmethod
    def wraps(error: Exception) -> bool:
        """Whether an error is about what a layer got, and gains by the layer's path."""
        kinds = (RuntimeError, ValueError, TypeError, IndexError)
        return isinstance(error, kinds) and not isinstance(error, torch.OutOfMemoryError)

    @classmethod
    def at(cls, step: str, layer: Any, x: Any, error: Exception) -> LayerError:
        """The error of a layer one step below, with what it got; further steps go in front."""
        if isinstance(error, LayerError):
            return error.below(step)
        described = repr(layer).split("  #")[0] if "\n" not in repr(layer) else type(layer).__name__
        name = getattr(layer, "__name__", described)
        return cls(step, f"{name} got {_say(x)} and failed: {type(error).__name__}: {error}")


def _say(x: Any) -> str:
    if isinstance(x, Tensor):
        return f"a tensor of shape {tuple(x.shape)} and {x.dtype}"
    if isinstance(x, (tuple, list)) and any(isinstance(item, Tensor) for item in x):
        return f"({', '.join(map(_say, x))})"
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


def explain_mixture(name: str, weight: Tensor, x: Tensor, error: RuntimeError) -> None:
    """Raise a better error where a layer and its input differ in device or dtype."""
    if x.device != weight.device:
        raise ValueError(
            f"{name} is on {weight.device}, its input on {x.device}; write "
            f"fluxlike.to_device(x, {str(weight.device)!r})"
        ) from error
    if x.dtype != weight.dtype:
        wanted = str(weight.dtype).removeprefix("torch.")
        raise ValueError(
            f"{name} holds {wanted}, its input is {str(x.dtype).removeprefix('torch.')}; write "
            f"x.to(torch.{wanted}), or cast the model"
        ) from error


def require_activation(name: str, activation: Any) -> None:
    """Refuse an activation that can't be called, or that is a class.

    Raises:
        TypeError: it says what to write.
    """
    if isinstance(activation, type):
        raise TypeError(f"{name} got the class {activation.__name__}; write {activation.__name__}()")
    if not callable(activation):
        hint = f"; write fl.{activation}" if isinstance(activation, str) else ""
        raise TypeError(f"{name} got the activation {activation!r}, which can't be called{hint}")
