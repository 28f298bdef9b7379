"""Functions that take the rows of a batch one by one: each rank calls them on its own rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import Placement

from fluxlike._private.dtensors import local_of, of_local, spec_over

__all__ = [
    "ANY", "Divided", "Rowwise", "Whole", "common", "differentiable_again", "enter", "fitting", "leave",
    "over_rows", "tensors_over", "whole",
]  # fmt: skip

#: More axes than a tensor has: nothing is mixed along any of them.
ANY = 99


class Rowwise:
    """How a function of rows is called.

    Args:
        rows: the names or places of the arguments with rows, tensors or tuples of them; all others are whole
            on each rank.
        axes: the leading axes of these along which nothing is mixed. (default: 1)
        trailing: the last axes of the first of these, along which things are mixed, to say it the other way
            round. (default: as `axes` says)
        broadcast: those of the arguments with rows whose axes are counted from the last one, where they may
            have fewer, or 1. (default: none)
    """

    def __init__(
        self,
        *rows: int | str,
        axes: int = 1,
        trailing: int | None = None,
        broadcast: Sequence[int | str] = (),
    ) -> None:
        self.rows, self.axes, self.trailing, self.broadcast = rows, axes, trailing, tuple(broadcast)

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given: dict[int | str, Any] = dict(enumerate(args))
        given.update(kwargs)
        found = [x for k in self.rows for x in tensors_over(given.get(k))]
        if not found:
            return NotImplemented
        first, rows = found[0], self.shared(found)
        if rows is None:  # torch says what is wrong with these shapes, or broadcasts them
            return Whole()(func, args, kwargs)
        where = {id(x): fitting(rows, first.shape, x) for x in found}
        for k in self.broadcast:
            where |= {id(x): _aligned(rows, first.shape, x) for x in tensors_over(given.get(k))}

        shared = {*self.rows, *self.broadcast}

        def local(k: int | str, x: Any) -> Any:
            # by the argument, since one tensor may be given with its rows and as what all rows are used with
            return entered(x, (lambda each: where.get(id(each))) if k in shared else (lambda _: None), rows)

        out = func(*(local(i, x) for i, x in enumerate(args)), **{k: local(k, x) for k, x in kwargs.items()})
        return over_rows(out, first.device_mesh, rows)

    def shared(self, found: Sequence[DTensor]) -> list[Placement] | None:
        """How the ranks share the rows of these arguments; None where these have other numbers of rows."""
        first = found[0]
        rows = common(found, self.axes if self.trailing is None else first.ndim - self.trailing)
        return None if any(fitting(rows, first.shape, x) is None for x in found) else rows


class Whole:
    """How a function that mixes rows is called: each rank calls it on all of them."""

    def __call__(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = list(tensors_over([args, list(kwargs.values())]))
        if not found:
            return NotImplemented
        rows = [Replicate()] * found[0].device_mesh.ndim

        def local(x: Any) -> Any:
            return entered(x, lambda _: None, rows)

        out = func(*map(local, args), **{name: local(x) for name, x in kwargs.items()})
        return over_rows(out, found[0].device_mesh, rows)


class Divided:
    """Rows that stand on another axis of each tensor, and how the ranks share them.

    Args:
        axes: of the rows, by the number (`id`) of the tensor; all others are whole on each rank.
        tensors: those with rows. They are shared as any of them is.
    """

    def __init__(self, tensors: Sequence[DTensor], axes: Sequence[int]) -> None:
        self._mesh = tensors[0].device_mesh
        self._axes = {id(x): axis for x, axis in zip(tensors, axes, strict=True)}
        pairs = list(zip(tensors, axes, strict=True))
        left = tensors[0].shape[axes[0]]
        self._divides: list[bool] = []
        for i in range(self._mesh.ndim):
            divides = any(x.placements[i] == Shard(a) for x, a in pairs) and left % self._mesh.size(i) == 0
            left = left // self._mesh.size(i) if divides else left
            self._divides.append(divides)

    def at(self, axis: int) -> list[Placement]:
        """The placements of a tensor with its rows on an axis."""
        return [Shard(axis) if divides else Replicate() for divides in self._divides]

    def enter(self, x: Any) -> Any:
        """An argument with the local parts in the place of tensors over a mesh."""
        rows = self.at(0)
        return entered(x, lambda t: self.at(self._axes[id(t)]) if id(t) in self._axes else None, rows)

    def leave(self, x: Any, axis: int) -> Any:
        """Results with their rows on an axis, over the mesh."""
        return over_rows(x, self._mesh, self.at(axis))


def tensors_over(x: Any) -> Iterator[DTensor]:
    """The tensors over a mesh in an argument."""
    if isinstance(x, DTensor):
        yield x
    elif isinstance(x, (tuple, list)):
        for part in x:
            yield from tensors_over(part)


def common(batched: Sequence[DTensor], axes: int) -> list[Placement]:
    """Placements that all take, sharded along leading axes alone, in equal parts.

    Args:
        batched: tensors with rows.
        axes: along how many axes they may be sharded.
    """
    shape, mesh = batched[0].shape, batched[0].device_mesh
    result: list[Placement] = []
    parts = [1] * len(shape)
    for i in range(mesh.ndim):
        found = {x.placements[i] for x in batched}
        dims = {p.dim for p in found if isinstance(p, Shard)}
        dim = next(iter(dims)) if len(dims) == 1 else axes
        keep = dim < min(axes, len(shape)) and shape[dim] % (parts[dim] * mesh.size(i)) == 0
        if keep:
            parts[dim] *= mesh.size(i)
        result.append(Shard(dim) if keep else Replicate())
    return result


def fitting(rows: Sequence[Placement], shape: Sequence[int], x: DTensor) -> list[Placement] | None:
    """How an argument lies beside rows of a shape; None where it has another number of them."""
    result: list[Placement] = []
    for p in rows:
        if isinstance(p, Shard):
            size = x.shape[p.dim] if p.dim < x.ndim else 0
            if size not in (1, shape[p.dim]):
                return None
            p = p if size == shape[p.dim] else Replicate()
        result.append(p)
    return result


def _aligned(rows: Sequence[Placement], shape: Sequence[int], x: DTensor) -> list[Placement]:
    """How an argument lies whose axes are those of a shape, counted from the last one."""
    missing = len(shape) - x.ndim

    def placement(p: Placement) -> Placement:
        if not isinstance(p, Shard) or p.dim < missing or x.shape[p.dim - missing] != shape[p.dim]:
            return Replicate()
        return Shard(p.dim - missing)

    return [placement(p) for p in rows]


def whole(placements: Sequence[Placement]) -> list[Placement]:
    """As many placements that are whole on each rank."""
    return [Replicate()] * len(placements)


def entered(x: Any, where: Callable[[DTensor], Sequence[Placement] | None], rows: Sequence[Placement]) -> Any:
    """An argument with the local parts in the place of tensors over a mesh.

    Args:
        x: the argument.
        where: how a tensor that has rows lies; None for one that is whole on each rank.
        rows: how the rows lie.
    """
    if isinstance(x, DTensor):
        placements = where(x)
        return enter(x, whole(rows) if placements is None else placements, rows)
    if isinstance(x, (tuple, list)) and type(x) in (tuple, list):
        return type(x)(entered(part, where, rows) for part in x)
    return x


def enter(x: DTensor, placements: Sequence[Placement], rows: Sequence[Placement] | None = None) -> Tensor:
    """The local part of a tensor placed so; the gradient of what is whole is a sum over the ranks' rows."""
    if tuple(x.placements) != tuple(placements):
        x = x.redistribute(placements=placements)
    if not x.requires_grad or not torch.is_grad_enabled():
        return local_of(x)
    if rows is None or tuple(rows) == tuple(placements):
        return x.to_local()
    pairs = zip(placements, rows, strict=True)
    sums = [Partial() if isinstance(r, Shard) and not isinstance(p, Shard) else p for p, r in pairs]
    return x.to_local(grad_placements=sums)


def leave(local: Tensor, mesh: Any, placements: Sequence[Placement]) -> DTensor:
    """The tensor over a mesh of which each rank has computed its rows."""
    shape = list(local.shape)
    for i, p in enumerate(placements):
        if isinstance(p, Shard):
            shape[p.dim] *= mesh.size(i)
    spec = spec_over(mesh, placements, shape, local)
    if not local.requires_grad:
        return of_local(local, spec)
    meta = spec.tensor_meta
    assert meta is not None
    new = DTensor.from_local(
        local, mesh, placements, run_check=False, shape=meta.shape, stride=tuple(meta.stride)
    )
    return differentiable_again(new)


def differentiable_again(x: DTensor) -> DTensor:
    """What was made of local tensors, with a gradient of its placements before it gets to them.

    DTensor would bring the gradient there by what can't be differentiated, and say nothing.
    """
    placements = x.placements  # not the tensor, which would never be freed
    x.register_hook(lambda g: g.redistribute(placements=placements))
    return x


def over_rows(out: Any, mesh: Any, placements: Sequence[Placement]) -> Any:
    """Results of a function of rows, over the mesh."""
    if isinstance(out, Tensor):
        return leave(out, mesh, placements)
    if isinstance(out, (tuple, list)):
        parts = [over_rows(x, mesh, placements) for x in out]
        return type(out)(*parts) if hasattr(out, "_fields") else type(out)(parts)
    return out
