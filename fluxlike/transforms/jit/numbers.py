"""Floats as 0-d tensors in a trace, which promote other tensors no more than floats do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from fluxlike.trees.values import standing_for_floats

__all__ = ["Numbers"]

_MAKERS = (torch.tensor, torch.as_tensor, torch.asarray)


class Numbers(TorchFunctionMode):
    """Inside, numbers take the dtype of the 0-d tensors that they meet, and are float64 among themselves.

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
        if func in _MAKERS:
            return _made(*args, **kwargs)
        met = [x for x in tensors if id(x) not in self._known]
        if not met:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.ndim == 0 and result.dtype == torch.float64:
                self._known[id(result)] = result
            return result
        floats = [x for x in met if x.is_floating_point() or x.is_complex()]
        axes = any(x.ndim for x in floats)  # of tensors with axes, 0-d ones promote none
        floating = [x.dtype for x in floats if x.ndim or not axes]
        dtype = torch.get_default_dtype()
        for n, other in enumerate(floating):
            dtype = torch.promote_types(dtype, other) if n else other
        real = dtype.to_real() if dtype.is_complex else dtype
        wide = torch.float32 if real.itemsize < 4 else real  # torch computes with the whole float
        narrow = wide != real and not axes  # and what has no axes is to be rounded here

        def cast(x: Any) -> Any:
            if type(x) in (list, tuple):
                return type(x)(map(cast, x))
            if not isinstance(x, Tensor):
                return x
            number = id(x) in self._known
            return x.to(wide) if number or (narrow and x.is_floating_point()) else x

        result = func(*map(cast, args), **{name: cast(value) for name, value in kwargs.items()})
        rounds = narrow and isinstance(result, Tensor) and result.dtype == wide
        return result.to(real) if rounds else result


def _made(data: Any, **options: Any) -> Tensor:
    """What ``torch.tensor`` makes of numbers, in a list too."""
    dtype = options.pop("dtype", None) or torch.get_default_dtype()
    device, grad = options.pop("device", None), options.pop("requires_grad", False)

    def make(part: Any) -> Tensor:
        if isinstance(part, (list, tuple)):
            return torch.stack([make(p) for p in part])
        return torch.as_tensor(part).to(dtype=dtype, device=device, copy=True)

    return make(data).requires_grad_(grad) if grad else make(data)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif type(value) in (list, tuple):
            yield from _tensors(value)
