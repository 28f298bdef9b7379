"""What losses share: checks of prediction and target, and how entries are computed and reduced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["Agg", "aggregate", "check_floats", "paired", "rounded_once", "spacing"]

#: Reduces the losses of all entries; None leaves them as they are.
Agg = Callable[[Tensor], Any] | None

_HALVES = (torch.float16, torch.bfloat16)


def aggregate(agg: Agg, entries: Tensor, /) -> Any:
    """What `agg` makes of the losses of all entries."""
    return entries if agg is None else agg(entries)


def rounded_once(formula: Callable[..., Tensor], pred: Tensor, target: Tensor, /) -> Tensor:
    """``formula(pred, target)``, in float32 where both are of 16 bits, and rounded at the end."""
    dtype = torch.promote_types(pred.dtype, target.dtype)
    if dtype in _HALVES:
        return formula(pred.float(), target.float()).to(dtype)
    return formula(pred, target)


def spacing(pred: Tensor, eps: float | None, /) -> float:
    """`eps`, or where it is None the spacing of numbers at 1 in the dtype of the prediction."""
    return torch.finfo(pred.dtype).eps if eps is None else eps


def paired(name: str, pred: Any, target: Any, /, *, labels: bool = False) -> Tensor:
    """The target of a loss of entries, in a floating dtype.

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
    if target.is_floating_point():
        return target
    if labels and not target.is_complex():
        return target.to(pred.dtype)
    raise TypeError(f"{name}: the target is {target.dtype}; {_instead(target, 'target')}")


def check_floats(name: str, pred: Any, target: Any, /) -> None:
    """Raise a TypeError unless both are tensors, and the prediction is of real floating numbers."""
    for what, x in (("prediction", pred), ("target", target)):
        if not isinstance(x, Tensor):
            raise TypeError(f"{name}: the {what} is a {type(x).__name__}; write a tensor")
    if not pred.is_floating_point():
        raise TypeError(f"{name}: the prediction is {pred.dtype}; {_instead(pred, 'prediction')}")


def _instead(x: Tensor, what: str) -> str:
    if x.is_complex():
        return f"a loss compares real numbers: write torch.view_as_real({what})"
    return f"a loss compares floating numbers: write {what}.float()"
