"""Floats as 0-d tensors in a trace, which promote other tensors no more than floats do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike.trees.values import standing_for_floats

__all__ = ["Numbers"]

_COPIES = (torch.tensor, torch.as_tensor, torch.asarray)


class Numbers(TorchFunctionMode):
    """Inside, numbers take the dtype of the tensors that they meet, and stay float64 among themselves.

    A 0-d float64 tensor would make a float64 of a 0-d float32 loss, where the float that it stands for
    does not.

    Args:
        numbers: 0-d float64 tensors that stand for floats.
    """

    def __init__(self, numbers: Iterable[Tensor]) -> None:
        super().__init__()
        self._known = {id(x): x for x in numbers}
        self._standing = standing_for_floats(self._known)

    def __enter__(self) -> Any:
        self._standing.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._standing.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = list(_tensors((*args, *kwargs.values())))
        if not any(id(x) in self._known for x in tensors):
            return func(*args, **kwargs)
        if func in _COPIES:
            return args[0].to(kwargs.get("dtype") or torch.get_default_dtype())
        met = [x.dtype for x in tensors if id(x) not in self._known]
        if not met:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.ndim == 0 and result.dtype == torch.float64:
                self._known[id(result)] = result
            return result
        dtype = torch.get_default_dtype()
        floating = [d for d in met if d.is_floating_point or d.is_complex]
        for d in floating:
            dtype = torch.promote_types(dtype, d) if d is not floating[0] else d
        real = dtype.to_real() if dtype.is_complex else dtype

        def cast(x: Any) -> Any:
            if isinstance(x, (list, tuple)) and type(x) in (list, tuple):
                return type(x)(map(cast, x))
            return x.to(real) if isinstance(x, Tensor) and id(x) in self._known else x

        return func(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from _tensors(value)
