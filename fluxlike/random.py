"""Random tensors: drawn from the key in scope, or by torch's generator where there is none.

They are plain tensors. On several ranks each draws all of them, the same under a key, and without one where
the ranks were seeded alike; so noise of the shape of a batch over a mesh is that of one process.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.rooms import room
from fluxlike.scope import draws
from fluxlike.scope.key import Key
from fluxlike.scope.seeded import active

__all__ = ["bernoulli", "integers", "normal", "permutation", "uniform"]


Device = torch.device | str | int | None
F = TypeVar("F", bound=Callable[..., Any])


def _keyless(f: F, /) -> F:
    """A draw whose TypeError over a key says where the key belongs."""

    @functools.wraps(f)
    def drawn(*args: Any, **kwargs: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except TypeError:
            if "key" not in kwargs and not any(isinstance(arg, Key) for arg in args):
                raise
            raise TypeError(
                f"{f.__name__} takes no key: leave it out, and draw under `with fluxlike.seeded(key):`"
            ) from None

    return cast(F, drawn)


@_keyless
def uniform(
    shape: Sequence[int] = (),
    /,
    low: float = 0.0,
    high: float = 1.0,
    *,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Uniform draws from [low, high).

    Args:
        shape: of the result. (default: a 0-d tensor)
        low: the lower end. (default: 0)
        high: the upper end; rounding may reach it where `low` and `high` are not 0 and 1. (default: 1)
        dtype: a floating dtype. (default: torch's default dtype)
        device: (default: torch's default device)

    Returns:
        A new tensor. Under a key, those from [0, 1) are the same bits everywhere: multiples of 2⁻²⁴ in
        float32, of 2⁻⁵³ in float64, of 2⁻¹¹ in float16 and of 2⁻⁸ in bfloat16.

    Raises:
        TypeError: a dtype that is not one of these, or a shape that is one number.

    Example:
        >>> import fluxlike as fl
        >>> with fl.seeded(fl.Key(0)):
        ...     fl.random.uniform((2,)), fl.random.uniform((2,), -1, 1)
        (tensor([0.3990, 0.8805]), tensor([0.0334, 0.8793]))
    """
    shape, dtype = _shape("uniform", shape), _floating("uniform", dtype)
    scope = active()
    if scope is None:
        if functorch.active():  # vmap has no draws in place
            return low + (high - low) * torch.rand(shape, dtype=dtype, device=device)
        return torch.empty(shape, dtype=dtype, device=device).uniform_(low, high)
    key, number = scope.next()
    u = draws.uniform(key.data, number, shape, dtype, _device(device))
    return u if (low, high) == (0, 1) else u * (high - low) + low


@_keyless
def normal(
    shape: Sequence[int] = (),
    /,
    mean: float = 0.0,
    std: float = 1.0,
    *,
    dtype: torch.dtype | None = None,
    device: Device = None,
) -> Tensor:
    """Normal draws (Box & Muller 1958, doi 10.1214/aoms/1177706645).

    Args:
        shape: of the result. (default: a 0-d tensor)
        mean: (default: 0)
        std: the standard deviation. (default: 1)
        dtype: a floating dtype. (default: torch's default dtype)
        device: (default: torch's default device)

    Returns:
        A new tensor. Under a key, the same everywhere to rounding.

    Raises:
        TypeError: a dtype other than float16, bfloat16, float32 and float64, or a shape that is one number.

    Example:
        >>> import fluxlike as fl
        >>> with fl.seeded(fl.Key(0)):
        ...     fl.random.normal((2,))
        tensor([ 0.9911, -0.9247])
    """
    shape, dtype = _shape("normal", shape), _floating("normal", dtype)
    scope = active()
    if scope is None:
        if functorch.active():
            return mean + std * torch.randn(shape, dtype=dtype, device=device)
        return torch.empty(shape, dtype=dtype, device=device).normal_(mean, std)
    key, number = scope.next()
    z = draws.normal(key.data, number, shape, dtype, _device(device))
    return z if (mean, std) == (0, 1) else z * std + mean


@_keyless
def bernoulli(
    shape: Sequence[int] | None = None, /, p: float | Tensor = 0.5, *, device: Device = None
) -> Tensor:
    """True with probability p, else False.

    Args:
        shape: of the result. (default: that of `p`)
        p: the probability, or a tensor of them that broadcasts to the shape. (default: 0.5)
        device: (default: that of `p`, or torch's default device)

    Returns:
        A new bool tensor. Under a key, the same everywhere, with `p` rounded to a multiple of 2⁻³².

    Raises:
        ValueError: a number `p` outside [0, 1].
        TypeError: a shape that is one number.

    Example:
        >>> import fluxlike as fl
        >>> with fl.seeded(fl.Key(0)):
        ...     fl.random.bernoulli((4,), 0.5)
        tensor([ True, False, False, False])
    """
    if not isinstance(p, Tensor) and not 0 <= p <= 1:
        raise ValueError(f"bernoulli(p={p!r}): write a probability, from 0 to 1")
    if isinstance(p, Tensor):
        p = p.detach() if device is None else p.detach().to(device)
        size, place = p.shape if shape is None else _shape("bernoulli", shape), p.device
    else:
        size, place = () if shape is None else _shape("bernoulli", shape), _device(device)
    scope = active()
    if scope is None:
        if functorch.active():
            return torch.rand(size, device=place) < p
        return torch.empty(size, dtype=torch.bool, device=place).bernoulli_(p)
    key, number = scope.next()
    return draws.bernoulli(key.data, number, size, p, place)


@_keyless
def integers(shape: Sequence[int], /, low: int, high: int, *, device: Device = None) -> Tensor:
    """Whole numbers from `low` to below `high`, each as likely.

    Args:
        shape: of the result.
        low: the smallest.
        high: one more than the largest.
        device: (default: torch's default device)

    Returns:
        A new int64 tensor. Under a key, the same everywhere, and each as likely to (high - low)·2⁻⁶³.

    Raises:
        ValueError: no number from `low` to below `high`.
        TypeError: a shape that is one number.

    Example:
        >>> import fluxlike as fl
        >>> with fl.seeded(fl.Key(0)):
        ...     fl.random.integers((5,), 1, 7)
        tensor([5, 1, 4, 4, 4])
    """
    if low >= high:
        raise ValueError(f"integers(low={low}, high={high}): high must be above low; it is not drawn itself")
    shape = _shape("integers", shape)
    scope = active()
    if scope is None:
        return torch.randint(low, high, shape, device=device)
    key, number = scope.next()
    return draws.integers(key.data, number, shape, low, high, _device(device))


@_keyless
def permutation(n: int, /, *, device: Device = None) -> Tensor:
    """The numbers 0 to n - 1 in random order, for example to index rows with.

    Args:
        n: how many.
        device: (default: torch's default device)

    Returns:
        A new int64 tensor of shape (n,). Under a key, the same everywhere.

    Raises:
        ValueError: a negative `n`.

    Example:
        >>> import fluxlike as fl
        >>> with fl.seeded(fl.Key(0)):
        ...     fl.random.permutation(5)
        tensor([4, 0, 3, 1, 2])
    """
    if n < 0:
        raise ValueError(f"permutation({n}): write how many numbers, at least 0")
    scope = active()
    if scope is None:
        return torch.randperm(n, device=device)
    key, number = scope.next()
    return draws.permutation(key.data, number, n, _device(device))


def _shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, int):
        raise TypeError(f"{name} takes the shape as a tuple, found {shape}; write ({shape},)")
    return tuple(shape)


def _floating(name: str, dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in draws.BITS:
        raise TypeError(
            f"{name} draws float16, bfloat16, float32 or float64, found dtype={dtype}; cast what it draws"
        )
    return dtype


def _device(device: Device) -> torch.device:
    return torch.get_default_device() if device is None else torch.device(device)


if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__)
