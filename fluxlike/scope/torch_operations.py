"""torch's random operations as draws from a key, by ATen operation and by function of torch.

`uniform_` and `normal_` are there because ``torch.nn.init`` and ``torch.distributions`` are made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.scope import draws
from fluxlike.scope.philox import Word

__all__ = ["FUNCTIONS", "OPERATIONS", "Numbers", "Source"]


class Numbers(Protocol):
    """Where torch's operations get the keys and numbers of their draws: `Draws`."""

    def next_of_torch(self) -> tuple[Any, Word]:
        """The key and the number of the next one."""


class Source:
    """Draws in the terms of torch's operations: a shape, a dtype or None, a device or None."""

    def __init__(self, numbers: Numbers, see: Callable[[Tensor], Any]) -> None:
        self._numbers, self._see = numbers, see

    def _next(self) -> tuple[Tensor, Word]:
        key, number = self._numbers.next_of_torch()
        return self._see(key.data), number

    def uniform(self, shape: Sequence[int], dtype: torch.dtype | None, device: Any) -> Tensor:
        return draws.uniform(*self._next(), shape, *_place(dtype, device))

    def normal(self, shape: Sequence[int], dtype: torch.dtype | None, device: Any) -> Tensor:
        return draws.normal(*self._next(), shape, *_place(dtype, device))

    def bernoulli(self, shape: Sequence[int], p: float | Tensor, device: torch.device) -> Tensor:
        return draws.bernoulli(*self._next(), shape, p, device)


def _place(dtype: torch.dtype | None, device: Any) -> tuple[torch.dtype, torch.device]:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in draws.BITS:
        raise RuntimeError(
            f"under a key, a random tensor of {dtype} can't be drawn; draw float32 and cast it"
        )
    return dtype, torch.get_default_device() if device is None else torch.device(device)


def _rand(source: Source, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return source.uniform(size, dtype, device)


def _randn(source: Source, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return source.normal(size, dtype, device)


def _rand_like(source: Source, input: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return source.uniform(input.shape, dtype or input.dtype, device or input.device)


def _randn_like(source: Source, input: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return source.normal(input.shape, dtype or input.dtype, device or input.device)


def _bernoulli(source: Source, input: Tensor, p: float | Tensor | None = None, **_: Any) -> Tensor:
    return source.bernoulli(input.shape, input if p is None else p, input.device).to(input.dtype)


def _bernoulli_(source: Source, input: Tensor, p: float | Tensor = 0.5, **_: Any) -> Tensor:
    return input.copy_(source.bernoulli(input.shape, p, input.device))


def _uniform_(source: Source, input: Tensor, *bounds: float, **named: Any) -> Tensor:
    low = bounds[0] if bounds else named.get("from", 0.0)
    high = bounds[1] if len(bounds) > 1 else named.get("to", 1.0)
    return input.copy_(source.uniform(input.shape, input.dtype, input.device) * (high - low) + low)


def _normal_(source: Source, input: Tensor, mean: float = 0.0, std: float = 1.0, **_: Any) -> Tensor:
    return input.copy_(source.normal(input.shape, input.dtype, input.device) * std + mean)


def _native_dropout(source: Source, input: Tensor, p: float, train: bool | None) -> tuple[Tensor, Tensor]:
    if train is False:
        return input.clone(), torch.ones_like(input, dtype=torch.bool)
    kept = ~source.bernoulli(input.shape, p, input.device)
    return input * kept * draws.scale(p), kept


def _dropout(
    source: Source, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    return _drop(source, input, p, training, inplace)


def _alpha_dropout(
    source: Source, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _drop(source, input, p, training, inplace, alpha=True)


def _feature_alpha_dropout(
    source: Source, input: Tensor, p: float = 0.5, training: bool = False, inplace: bool = False
) -> Tensor:
    return _drop(source, input, p, training, inplace, axes=2, alpha=True)


def _feature_dropout(batched: int | None) -> Callable[..., Tensor]:
    """Dropout of whole channels: of the axes (N, C), or C alone where there are fewer than `batched`."""

    def drop(
        source: Source, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        axes = 1 if batched is not None and input.ndim < batched else 2
        return _drop(source, input, p, training, inplace, axes=axes)

    return drop


def _drop(
    source: Source,
    x: Tensor,
    p: float,
    training: bool,
    inplace: bool,
    *,
    axes: int | None = None,
    alpha: bool = False,
) -> Tensor:
    """Dropout with one draw for each place on the first axes. (default: on all)"""
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    if not training:
        return x
    shape = x.shape if axes is None else [*x.shape[:axes], *(1 for _ in x.shape[axes:])]
    dropped = source.bernoulli(shape, p, x.device)
    y = _keep_moments(x, dropped, p) if alpha else x * ~dropped * draws.scale(p)
    return x.copy_(y) if inplace else y


def _keep_moments(x: Tensor, dropped: Tensor, p: float) -> Tensor:
    """Alpha dropout, which keeps mean 0 and variance 1 (Klambauer et al. 2017, arXiv 1706.02515)."""
    if p == 1:
        return torch.zeros_like(x)
    low = -1.7580993408473766  # the limit of selu for large negative inputs
    a = ((1 - p) * (1 + p * low**2)) ** -0.5
    return torch.where(dropped, low, x) * a - a * p * low


_aten = torch.ops.aten

#: By operation of ATen: below autograd.
OPERATIONS: dict[Any, Callable[..., Any]] = {
    _aten.rand.default: _rand,
    _aten.randn.default: _randn,
    _aten.rand_like.default: _rand_like,
    _aten.randn_like.default: _randn_like,
    _aten.bernoulli.default: _bernoulli,
    _aten.bernoulli.p: _bernoulli,
    _aten.bernoulli_.float: _bernoulli_,
    _aten.bernoulli_.Tensor: _bernoulli_,
    _aten.uniform_.default: _uniform_,
    _aten.normal_.default: _normal_,
    _aten.native_dropout.default: _native_dropout,
}


def _of_sizes(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A factory function, which takes its sizes one by one or as a sequence."""

    def make(source: Source, *size: Any, requires_grad: bool = False, **options: Any) -> Tensor:
        size = options.pop("size", size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        made = draw(source, size, **options)
        return made.requires_grad_() if requires_grad else made

    return make


def _of_train(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A dropout by its name in torch, which says `train`."""
    return lambda source, input, p, train: draw(source, input, p, train)


#: By function of torch: above ``vmap``.
FUNCTIONS: dict[Any, Callable[..., Any]] = {
    torch.rand: _of_sizes(_rand),
    torch.randn: _of_sizes(_randn),
    torch.rand_like: _rand_like,
    torch.randn_like: _randn_like,
    torch.bernoulli: _bernoulli,
    Tensor.bernoulli: _bernoulli,
    Tensor.bernoulli_: _bernoulli_,
    Tensor.uniform_: _uniform_,
    Tensor.normal_: _normal_,
    torch.dropout: _of_train(_dropout),
    F.dropout: _dropout,
    F.dropout1d: _feature_dropout(3),
    F.dropout2d: _feature_dropout(None),
    F.dropout3d: _feature_dropout(5),
    F.alpha_dropout: _alpha_dropout,
    F.feature_alpha_dropout: _feature_alpha_dropout,
}
