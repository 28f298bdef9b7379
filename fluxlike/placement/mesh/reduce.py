"""Gradients brought to the placements of their parameters: many by one sum, begun in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate

from fluxlike._private import autograd, collectives
from fluxlike._private.dtensors import local_of, of_local, spec_over
from fluxlike.placement.mesh.tensors import Stored

__all__ = ["placed_as", "reduce_early"]

_BUCKET = 8 << 20  # bytes that travel at once: enough to hide the latency, few enough to start early
_REDUCER = "_fluxlike_reducer"  # the attribute of a handle that says where its gradient is summed


def reduce_early(handles: Sequence[Tensor], /) -> None:
    """Let the gradients of parameters that are whole on each rank travel while the backward pass goes on."""
    whole = [
        x for x in handles if isinstance(x, Stored) and x.requires_grad and all(map(_is_whole, x.placements))
    ]
    for bucket in _buckets(whole):
        _Bucket(bucket)


def _is_whole(placement: Any) -> bool:
    return isinstance(placement, Replicate)


class _Bucket:
    """Parameters whose gradients are summed together as soon as the last one is there.

    What it holds is of one backward pass; the `back` of a pullback may start several.
    """

    def __init__(self, handles: Sequence[DTensor]) -> None:
        self._grads: dict[int, DTensor] = {}
        self._sum: _Sum | None = None
        self._running: int | None = None
        for k, x in enumerate(handles):
            setattr(x, _REDUCER, (self, k))
            x.register_hook(self._arrival(k, x.placements, len(handles)))

    def _arrival(self, k: int, placements: Any, count: int) -> Callable[[Any], None]:
        """What autograd calls with the gradient of one parameter."""

        def arrived(g: Any) -> None:
            running = autograd.backward_pass()
            if running != self._running:
                self.forget()
                self._running = running
            pending = _pending_axes(g, placements) if isinstance(g, DTensor) and not g.requires_grad else None
            if pending is None or len(pending) != 1:
                return
            self._grads[k] = g
            alike = {(x.dtype, x.placements) for x in self._grads.values()}
            if len(self._grads) == count and len(alike) == 1:
                self._sum = _Sum(self._grads, pending[0])
                self._grads = {}

        return arrived

    def forget(self) -> None:
        """Let go of what a backward pass has left."""
        self._grads, self._sum = {}, None

    def take(self, k: int, like: DTensor) -> DTensor | None:
        """The sum of one gradient, if it has started."""
        return None if self._sum is None else self._sum.take(k, like)


class _Sum:
    """A sum of several gradients that is under way."""

    def __init__(self, grads: dict[int, DTensor], pending: tuple[int, str]) -> None:
        dim, op = pending
        self._mesh = mesh = next(iter(grads.values())).device_mesh
        parts = {k: local_of(g) for k, g in grads.items()}
        self._shapes = {k: t.shape for k, t in parts.items()}
        flat = torch.cat([t.reshape(-1) for t in parts.values()])
        if op == "avg":
            flat = flat / mesh.size(dim)
        self._flat = collectives.start_all_reduce(flat, mesh, dim)
        self._pieces: dict[int, Tensor] | None = None

    def take(self, k: int, like: DTensor) -> DTensor:
        if self._pieces is None:
            sizes = [shape.numel() for shape in self._shapes.values()]
            pieces = collectives.finished(self._flat).split(sizes)
            self._pieces = dict(zip(self._shapes, pieces, strict=True))
        part = self._pieces[k].view(self._shapes[k])
        return of_local(part, spec_over(self._mesh, like.placements, like.shape, part), Stored)


def placed_as(grads: Sequence[Tensor | None], params: Sequence[Tensor], /) -> list[Tensor | None]:
    """Gradients with the placements of their parameters.

    Sums over ranks that have to be whole everywhere travel together; all others one by one.
    """
    result = list(grads)
    together: dict[Any, list[int]] = {}
    buckets: set[_Bucket] = set()
    for i, (g, x) in enumerate(zip(grads, params, strict=True)):
        if not isinstance(g, DTensor) or not isinstance(x, DTensor):
            continue
        bucket, k = getattr(x, _REDUCER, (None, 0))
        if bucket is not None:
            buckets.add(bucket)
            early = bucket.take(k, x)
            if early is not None:
                result[i] = early
                continue
        if g.placements == x.placements:
            result[i] = _stored(g)
            continue
        pending = _pending_axes(g, x.placements)
        if pending is None or g.requires_grad:
            result[i] = _stored(g.redistribute(placements=x.placements))
        else:
            together.setdefault((x.device_mesh, pending, g.dtype), []).append(i)
    for bucket in buckets:
        bucket.forget()
    for (mesh, pending, _), members in together.items():
        for bucket in _buckets(members, [local_of(grads[i]).nbytes for i in members]):  # type: ignore[arg-type]
            _reduce(bucket, mesh, pending, result, params)
    return result


def _stored(g: DTensor) -> DTensor:
    if not isinstance(g, Stored):
        g.__class__ = Stored
    return g


def _pending_axes(g: DTensor, wanted: Sequence[Any]) -> tuple[tuple[int, str], ...] | None:
    """The axes along which a sum is pending and the parameter is whole, if that is all the difference."""
    found = []
    for i, (has, wants) in enumerate(zip(g.placements, wanted, strict=True)):
        if has == wants:
            continue
        if type(has) is not Partial or has.reduce_op not in ("sum", "avg") or not _is_whole(wants):
            return None
        found.append((i, has.reduce_op))
    return tuple(found)


def _buckets(members: Sequence[Any], sizes: Sequence[int] | None = None) -> Iterator[list[Any]]:
    """Members from the last to the first, in which order gradients are known, so many bytes at a time."""
    sizes = [local_of(x).nbytes for x in members] if sizes is None else sizes
    bucket, total = [], 0
    for x, size in zip(reversed(members), reversed(sizes), strict=True):
        bucket.append(x)
        total += size
        if total >= _BUCKET:
            yield bucket
            bucket, total = [], 0
    if bucket:
        yield bucket


def _reduce(
    bucket: list[int], mesh: DeviceMesh, pending: Sequence[tuple[int, str]], grads: list[Any], params: Any
) -> None:
    parts = [local_of(grads[i]) for i in bucket]
    flat = torch.cat([t.reshape(-1) for t in parts])
    for dim, op in pending:
        if op == "avg":
            flat = flat / mesh.size(dim)
        flat = collectives.finished(collectives.start_all_reduce(flat, mesh, dim))
    for i, piece, t in zip(bucket, flat.split([t.numel() for t in parts]), parts, strict=True):
        part = piece.view(t.shape)
        grads[i] = of_local(part, spec_over(mesh, params[i].placements, params[i].shape, part), Stored)
