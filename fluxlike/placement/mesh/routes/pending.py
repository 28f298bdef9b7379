"""Routes of what DTensor doesn't compute from a pending sum: there, the sum is settled first.

A tensor is pending where the sum of what the ranks hold is what it says, as in a loss. DTensor (torch 2.13)

- keeps one plan for a pending sum plus a number and for one plus a 0-d tensor, whichever came first. By that
  of the tensor, every rank adds the number;
- has no derivative of a norm of one;
- writes into one on every rank, if it does at all: after ``y.fill_(3)`` on two ranks, the sum is 6.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial

from fluxlike.placement.mesh.rowwise import tensors_over
from fluxlike.placement.mesh.signatures import bound
from fluxlike.placement.mesh.tensors import settled

__all__ = ["ROUTES"]

_Route = Callable[..., Any] | None


def _is_pending(x: Any) -> bool:
    return isinstance(x, DTensor) and bool(_partial(x))


def _whole(x: Any) -> Any:
    """An argument without pending sums."""
    if isinstance(x, (tuple, list)) and type(x) in (tuple, list):
        return type(x)(map(_whole, x))
    return settled(x) if _is_pending(x) else x


class _Settled:
    """A function of which no argument may be pending.

    Args:
        route: how it goes where none is; None for DTensor's own way.
    """

    def __init__(self, route: _Route) -> None:
        self._route = route

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if any(map(_is_pending, tensors_over([args, list(kwargs.values())]))):
            args, kwargs = _whole(args), {name: _whole(x) for name, x in kwargs.items()}
        elif self._route is None:
            return NotImplemented
        out = NotImplemented if self._route is None else self._route(func, args, kwargs)
        return func(*args, **kwargs) if out is NotImplemented else out


class _Sum(_Settled):
    """A sum or a difference: that of two tensors may be pending, that of a tensor and a number not."""

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [*args, *(kwargs[name] for name in ("input", "other") if name in kwargs)]
        if all(isinstance(x, Tensor) for x in given[:2]):
            return NotImplemented
        return super().__call__(func, args, kwargs)


class _Into:
    """A function that writes into its first argument: into the sum, which stays pending.

    Args:
        route: how it goes where nothing is pending; None for DTensor's own way.
    """

    def __init__(self, route: _Route) -> None:
        self._route = route

    def __call__(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else kwargs.get("input")
        if not _is_pending(x) or not self._writes(func, args, kwargs) or _each_by_itself(func, args, kwargs):
            return NotImplemented if self._route is None else self._route(func, args, kwargs)
        assert isinstance(x, DTensor)
        y = settled(x).clone()
        args = (y, *_whole(args[1:])) if args else ()
        kwargs = {name: y if value is x else _whole(value) for name, value in kwargs.items()}
        out = NotImplemented if self._route is None else self._route(func, args, kwargs)
        if out is NotImplemented:
            func(*args, **kwargs)
        x.copy_(_pending_as(x, y, func))
        return None if func is Tensor.__setitem__ else x

    def _writes(self, func: Any, args: Any, kwargs: Any) -> bool:
        return True


class _IntoIfTold(_Into):
    """A function that writes into its first argument if it is told ``inplace=True``."""

    def _writes(self, func: Any, args: Any, kwargs: Any) -> bool:
        return bool(bound(func, args, kwargs).arguments.get("inplace"))


def _each_by_itself(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a function is linear, so that each rank changes its own part of the sum."""
    if func not in _ADDED and func not in _SCALED:
        return False
    x, other = args[0], args[1] if len(args) > 1 else kwargs.get("other")
    if not all(type(p) is Partial and p.reduce_op in ("sum", "avg") for p in _partial(x)):
        return False
    if func in _ADDED:
        return isinstance(other, DTensor) and (not _is_pending(other) or other.placements == x.placements)
    return isinstance(other, (int, float)) and kwargs.get("rounding_mode") is None


def _partial(x: DTensor) -> list[Partial]:
    return [p for p in x.placements if isinstance(p, Partial)]


def _pending_as(x: DTensor, y: Any, func: Any) -> DTensor:
    """A settled tensor, pending as another one is: one rank holds it, and the others what adds nothing."""
    mesh = x.device_mesh
    local = y.to_local(
        grad_placements=[
            Partial() if isinstance(p, Partial) and p.reduce_op == "sum" else q
            for p, q in zip(x.placements, y.placements, strict=True)
        ]
    )
    for i, p in enumerate(x.placements):
        if not isinstance(p, Partial):
            continue
        if type(p) is not Partial or p.reduce_op not in ("sum", "avg", "max", "min"):
            raise RuntimeError(
                f"{func.__name__} into a tensor over a mesh where {p} over the ranks is pending: write what "
                "gives a new tensor, such as x = x.relu() for x.relu_()"
            )
        if p.reduce_op == "sum":
            other = torch.full((), mesh.get_local_rank(i) != 0, device=local.device)
            local = local.masked_fill(other, 0)
    return DTensor.from_local(local, mesh, x.placements, run_check=False, shape=y.shape, stride=y.stride())


_SUMS = (
    torch.add, torch.sub, torch.subtract, Tensor.add, Tensor.sub, Tensor.subtract, Tensor.__add__,
    Tensor.__radd__, Tensor.__sub__,
)  # fmt: skip
_WITHOUT_RULE = (
    torch.norm, Tensor.norm, torch.linalg.norm, torch.linalg.vector_norm, torch.linalg.matrix_norm,
    torch.dist, Tensor.dist, F.normalize, F.pairwise_distance, F.cosine_similarity,
    torch.cosine_similarity, F.threshold,
)  # fmt: skip

_ADDED = {Tensor.add_, Tensor.sub_, Tensor.subtract_, Tensor.__iadd__, Tensor.__isub__}
_SCALED = {
    Tensor.mul_, Tensor.multiply_, Tensor.__imul__, Tensor.div_, Tensor.divide_, Tensor.true_divide_,
    Tensor.__itruediv__,
}  # fmt: skip

_OPERATORS = "add sub mul truediv floordiv mod pow and or xor lshift rshift"
#: Functions that end like those that write, and leave the entries as they are.
_OF_FORM = {
    "as_strided_", "detach_", "rename_", "requires_grad_", "resize_", "resize_as_", "set_", "share_memory_",
    "squeeze_", "swapaxes_", "swapdims_", "t_", "transpose_", "unsqueeze_",
}  # fmt: skip


def _writing() -> list[Any]:
    found = [
        getattr(room, name)
        for room in (Tensor, torch, F)
        for name in dir(room)
        if name.endswith("_") and not name.startswith("_") and name not in _OF_FORM
    ]
    operators = [getattr(Tensor, f"__i{name}__") for name in _OPERATORS.split()]
    return [f for f in (*found, *operators, Tensor.__setitem__) if callable(f)]


def _told() -> list[Any]:
    functions = [f for f in vars(F).values() if isinstance(f, FunctionType)]
    return [f for f in functions if "inplace" in inspect.signature(f).parameters]


#: Routes of pending sums, made of the route that a function has where nothing is pending.
ROUTES: dict[Any, Callable[[_Route], Callable[..., Any]]] = {
    **dict.fromkeys(_told(), _IntoIfTold),
    **dict.fromkeys(_writing(), _Into),
    **dict.fromkeys(_WITHOUT_RULE, _Settled),
    **dict.fromkeys(_SUMS, _Sum),
}
