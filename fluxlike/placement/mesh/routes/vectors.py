"""Routes of products whose first factor is a vector.

torch 2.13 computes them as products of a matrix of one row, of which DTensor's in-place ``squeeze_`` leaves
the axis.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ROUTES"]


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    given = dict(zip(("input", "other"), args, strict=False)) | kwargs
    x, y = (given.get(name) for name in ("input", "other"))
    if func is Tensor.__rmatmul__:
        x, y = y, x
    if "out" in kwargs or not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.ndim == 1 < y.ndim):
        return NotImplemented
    return torch.matmul(x.unsqueeze(0), y).squeeze(-2)


def _linear(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    x, *others = args or (kwargs["input"],)
    options = {name: value for name, value in kwargs.items() if name != "input"}
    if x.ndim != 1:
        return NotImplemented
    return F.linear(x.unsqueeze(0), *others, **options).squeeze(0)


_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, Tensor.__rmatmul__)
ROUTES: dict[Any, Any] = {**dict.fromkeys(_PRODUCTS, _product), F.linear: _linear}
