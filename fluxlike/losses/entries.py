"""What losses share: checks of prediction and target, and how entries are computed and reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluxlike._private.tracing import readable
from fluxlike.placement.numbers import at_least_float32

__all__ = [
    "Agg",
    "check_floats",
    "check_not_negative",
    "check_pair",
    "check_probabilities",
    "rounded_once",
    "spacing",
]

#: Reduces the losses of all entries; None leaves them as they are.
Agg = Callable[[Tensor], Any] | None

_ROUNDING = 1e-3  # how far from 0 and 1 products and means of probabilities may come to lie


def rounded_once(agg: Agg, formula: Callable[..., Tensor], /, *tensors: Tensor) -> Any:
    """What `agg` makes of ``formula(*tensors)``, where all is computed in at least float32.

    The tensors are cast to the widest of their floating dtypes, and those of 16 bits to float32. Then
    what `agg` returns is rounded back if it is a tensor, except under autocast, where torch's losses
    return float32 too.
    """
    if agg is not None and not callable(agg):
        write = {"sum": "torch.sum", "none": "None"}.get(str(agg), "torch.mean")
        raise TypeError(f"agg={agg!r}: write a function of the entries' losses, such as agg={write}")
    dtype = _widest(tensors)
    wide = at_least_float32(dtype)
    entries = formula(*[x if x.dtype is wide else x.to(wide) for x in tensors])
    value = entries if agg is None else agg(entries)
    if dtype is wide or not isinstance(value, Tensor) or value.dtype is not wide:
        return value
    return value if _autocast(tensors[0].device.type) else value.to(dtype)


def spacing(eps: float | None, /, *tensors: Tensor) -> float:
    """`eps`; or where it is None, the spacing of numbers at 1 in the dtype in which a loss is computed.

    A first tensor of float16 has its own: of others, the derivative 1/eps is beyond its range.
    """
    if eps is not None:
        return eps
    own = tensors[0].dtype is torch.float16
    return torch.finfo(torch.float16 if own else at_least_float32(_widest(tensors))).eps


def check_pair(name: str, pred: Any, target: Any, /, *, labels: bool = False) -> None:
    """Refuse a pair that a loss of entries does not take.

    Args:
        name: of the loss.
        pred: the prediction.
        target: the target, of the same shape.
        labels: whether true and false, and whole numbers, are targets too.

    Raises:
        TypeError: no tensors, or not of real floating numbers.
        ValueError: the shapes differ.
    """
    check_floats(name, pred, target)
    if pred.shape != target.shape:
        raise ValueError(
            f"{name}: the prediction has the shape {tuple(pred.shape)}, the target "
            f"{tuple(target.shape)}; nothing is broadcast, so reshape one, for example with "
            ".squeeze(1) or .unsqueeze(1)"
        )
    if not target.is_floating_point() and (target.is_complex() or not labels):
        raise TypeError(f"{name}: the target is {target.dtype}; {_instead(target, 'target')}")


def check_floats(name: str, pred: Any, target: Any, /) -> None:
    """Raise a TypeError unless both are tensors, and the prediction is of real floating numbers."""
    for what, x in (("prediction", pred), ("target", target)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: the {what} is a {type(x).__name__}; write a tensor")
    if pred.is_floating_point():
        return
    if target.is_floating_point() and not pred.is_complex():
        raise TypeError(
            f"{name}: the prediction is {pred.dtype}; the target is {target.dtype}: are they swapped? Write "
            f"{name}(prediction, target); and if they are not, write prediction.float()"
        )
    raise TypeError(f"{name}: the prediction is {pred.dtype}; {_instead(pred, 'prediction')}")


def check_probabilities(name: str, probs: Tensor, write: str, /, *, above: float = _ROUNDING) -> None:
    """Raise a ValueError where the values of a prediction can be read here and are no probabilities.

    Args:
        name: of the loss.
        probs: the prediction.
        write: what to write for unnormalised scores.
        above: how far above 1 the loss still has a value; below 0, none has. (default: a rounding)
    """
    values = probs.detach()
    if not values.numel() or not readable(values):
        return
    low, high = (x.item() for x in values.aminmax())
    if low >= 0 and high <= 1 + (above and max(above, torch.finfo(values.dtype).eps)):
        return
    near = low >= -_ROUNDING and high <= 1 + _ROUNDING
    digits, hint = (8, ", or prediction.clamp(0, 1) where it is rounding") if near else (4, "")
    raise ValueError(
        f"{name} takes probabilities, found values from {low:.{digits}g} to {high:.{digits}g}: write "
        f"{write}{hint}"
    )


def check_not_negative(name: str, option: str, value: float, /) -> None:
    """Raise a ValueError unless an option of a loss is at least 0."""
    if not value >= 0:
        raise ValueError(f"{name}: {option}={value}; write a number of at least 0")


def _instead(x: Tensor, what: str) -> str:
    if x.is_complex():
        return f"a loss compares real numbers: write torch.view_as_real({what})"
    return f"a loss compares floating numbers: write {what}.float()"


def _widest(tensors: tuple[Tensor, ...]) -> torch.dtype:
    """The dtype that torch promotes to: of the first, and of all others that are floating."""
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        if x.dtype is not dtype and x.is_floating_point():
            dtype = torch.promote_types(dtype, x.dtype)
    return dtype


def _autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
