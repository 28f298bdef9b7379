"""Routes of sums and differences of a pending sum and a number.

DTensor (torch 2.13) keeps one plan for a pending sum plus a number and for a pending sum plus a 0-d tensor,
whichever came first. By that of the tensor, every rank adds the number.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from fluxlike.placement.mesh.tensors import settled

__all__ = ["ROUTES"]


def _pending(x: Any) -> bool:
    return isinstance(x, DTensor) and any(isinstance(p, Partial) for p in x.placements)


def _sum(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    given = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)]
    if not any(map(_pending, given)) or all(isinstance(x, Tensor) for x in given[:2]):
        return NotImplemented
    return func(
        *(settled(x) if _pending(x) else x for x in args),
        **{name: settled(x) if _pending(x) else x for name, x in kwargs.items()},
    )


def _sum_in_place(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    if not _pending(args[0]) or all(isinstance(x, Tensor) for x in args[1:2]):
        return NotImplemented
    raise RuntimeError(
        f"{func.__name__} of a number into a tensor over a mesh where a sum over the ranks is pending, as in "
        "a loss: write x = x + number"
    )


_BESIDE = (
    torch.add, torch.sub, torch.subtract, Tensor.add, Tensor.sub, Tensor.subtract, Tensor.__add__,
    Tensor.__radd__, Tensor.__sub__,
)  # fmt: skip
_IN_PLACE = (Tensor.add_, Tensor.sub_, Tensor.subtract_, Tensor.__iadd__, Tensor.__isub__)

ROUTES: dict[Any, Any] = {**dict.fromkeys(_BESIDE, _sum), **dict.fromkeys(_IN_PLACE, _sum_in_place)}
