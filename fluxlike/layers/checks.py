"""What layers refuse of their arguments and inputs, and what they say to write instead."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from fluxlike.advice import call_hint

__all__ = [
    "explain_mixture", "refuse_input", "require_activation", "require_callable", "require_features",
    "require_shape",
]  # fmt: skip


def refuse_input(name: str, x: object, wanted: str, hint: str = "") -> NoReturn:
    """The error of an input that is no tensor of the shape `wanted`, and what may help.

    Raises:
        TypeError: it is no tensor.
        ValueError: in every other case.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor of shape {wanted}, found {type(x).__name__}")
    raise ValueError(f"{name} takes the shape {wanted}, found {tuple(x.shape)}{hint}")


def require_features(
    name: str, x: Any, axis: int, size: int, wanted: str, ndims: tuple[int, ...] = ()
) -> None:
    """Refuse an input whose `axis` is not of length `size`, or whose rank is not among `ndims`.

    Raises:
        TypeError: `x` is no tensor.
        ValueError: the shape is not as `wanted` says.
    """
    if not isinstance(x, Tensor) or (ndims and x.ndim not in ndims):
        refuse_input(name, x, wanted)
    if x.ndim <= (axis if axis >= 0 else -axis - 1) or x.shape[axis] != size:
        refuse_input(name, x, wanted)


def require_shape(name: str, x: object, shape: tuple[int, ...]) -> None:
    """Refuse an input whose last axes are not of this shape.

    Raises:
        TypeError: `x` is no tensor.
        ValueError: other last axes.
    """
    if not isinstance(x, Tensor) or x.ndim < len(shape) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
        refuse_input(name, x, f"(…, {', '.join(map(str, shape))})")


def explain_mixture(name: str, weight: Tensor, x: Tensor, error: RuntimeError | None = None) -> None:
    """Raise an error where a layer and its input differ in device or dtype: a better one than torch's, if
    there was one.

    Raises:
        ValueError: it says both, and what to write.
    """
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


def require_callable(name: str, part: str, f: Any) -> None:
    """Refuse a part of a layer that can't be called, or that is a class.

    Raises:
        TypeError: it says what to write.
    """
    if isinstance(f, type):
        raise TypeError(f"{name} takes a {part}, found the class {f.__name__}; write {f.__name__}(…)")
    if not callable(f):
        hint = call_hint(f)
        found = f"a {type(f).__name__}{hint}" if hint else repr(f)
        raise TypeError(f"{name} takes a callable {part}, found {found}")


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
