"""Sharded parameters gathered when the first of a group is used, and again for the backward pass.

Between the two passes nothing is kept but the shards (Zhao et al. 2023, arXiv 2304.11277): what autograd
saves of a gathered parameter is the way to gather it again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from fluxlike._private import autograd, functorch
from fluxlike._private.dtensors import Spec, WeakStorage, local_of, of_local, spec_of, storage_of
from fluxlike.placement.mesh.groups import Group, grouped
from fluxlike.placement.mesh.tensors import GATHER

__all__ = ["gathering"]

_RECENT = 2  # groups whose used members stay whole, for what uses them again soon, such as a loop over time


class _Wholes:
    """The whole members that a pass holds: those that it has not used yet, and the groups that it used last.

    What is held depends on the order of use alone, and not on when memory is freed. So it is the same on all
    ranks, and with it the collectives.
    """

    def __init__(self) -> None:
        self._held: dict[Group, dict[int, Any]] = {}  # the last one was used last
        self._used: dict[Group, set[int]] = {}

    def add(self, group: Group, wholes: dict[int, Any]) -> None:
        """Hold some members."""
        self._held.setdefault(group, {}).update(wholes)
        self._used.setdefault(group, set())

    def use(self, group: Group, k: int) -> Any:
        """A member, None where it is not held."""
        held = self._held.get(group, {})
        if k not in held:
            return None
        self._used[group].add(k)
        if next(reversed(self._held)) is not group:
            self._held[group] = self._held.pop(group)
            for before in list(self._held)[:-_RECENT]:
                self._release(before)
        return held[k]

    def _release(self, group: Group) -> None:
        for k in self._used[group]:
            del self._held[group][k]
        self._used[group].clear()
        if not self._held[group]:
            self.drop(group)

    def drop(self, group: Group) -> None:
        """Let go of a group."""
        self._held.pop(group, None)
        self._used.pop(group, None)

    def clear(self) -> None:
        """Let go of all."""
        self._held.clear()
        self._used.clear()


class _Backward:
    """The members that the backward pass has gathered again, until their gradients are scattered."""

    def __init__(self) -> None:
        self._wholes = _Wholes()
        self._running: int | None = None

    def whole(self, group: Group, k: int) -> Tensor:
        """A member."""
        running = autograd.backward_pass()
        if running is None:  # somebody looks at what autograd keeps
            return group.wholes([k])[0]
        if running != self._running:
            self._wholes.clear()
            self._running = running
            autograd.after_backward(self._wholes.clear)
        found = self._wholes.use(group, k)
        if found is None:
            self._wholes.add(group, dict(enumerate(group.wholes(range(len(group.members))))))
            found = self._wholes.use(group, k)
        return found

    def scattered(self, group: Group, numbers: Sequence[int], grads: Sequence[Any]) -> list[DTensor | None]:
        """The gradients of the parts from those of wholes, of which no more is needed."""
        if len(numbers) == len(group.members):
            self._wholes.drop(group)
        return group.scattered(numbers, grads)


class _Gather(torch.autograd.Function):
    """Members of a group, whole; the gradient of each is that of its part, summed over the ranks."""

    @staticmethod
    def forward(
        ctx: Any, group: Group, backward: _Backward, numbers: Sequence[int], *handles: DTensor
    ) -> tuple[DTensor, ...]:
        ctx.group, ctx.back, ctx.numbers = group, backward, numbers
        ctx.set_materialize_grads(False)
        return tuple(group.over_mesh(k, x) for k, x in zip(numbers, group.wholes(numbers), strict=True))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if torch.is_grad_enabled() and any(g is not None and g.requires_grad for g in grads):
            raise RuntimeError(
                "a gradient of parameters divided over a mesh is differentiated, and its forward pass was "
                "not: write fluxlike.gradient where torch.autograd.grad(…, create_graph=True) stands, and "
                "take the pullback inside the function that is differentiated"
            )
        return None, None, None, *ctx.back.scattered(ctx.group, ctx.numbers, grads)


class _Registry:
    """Which memory is that of a gathered parameter."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[WeakStorage, Group, int]] = {}

    def add(self, x: DTensor, group: Group, k: int) -> None:
        """Know a member by its memory, which nothing else can be at as long as this is known."""
        local = local_of(x)
        self._known[storage_of(local)] = WeakStorage(local), group, k

    def find(self, local: Tensor) -> tuple[Group, int] | None:
        """The group and the number of a member that a tensor is, or is a view of."""
        found = self._known.get(storage_of(local))
        return None if found is None else found[1:]


class _Again:
    """What autograd keeps in the place of a gathered parameter, or of a view of one."""

    def __init__(
        self, backward: _Backward, group: Group, k: int, local: Tensor, spec: Spec | None, kind: type
    ) -> None:
        self.back, self.group, self.k, self.spec, self.kind = backward, group, k, spec, kind
        self.view = local.size(), local.stride(), local.storage_offset()

    def tensor(self) -> Tensor:
        """The tensor."""
        local = self.back.whole(self.group, self.k).as_strided(*self.view)
        return local if self.spec is None else of_local(local, self.spec, self.kind)


class _Gathering:
    """The groups of one gradient."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        self._places = {
            id(member.handle): (group, k)
            for group in grouped(tensors)
            for k, member in enumerate(group.members)
        }
        self._registry = _Registry()
        self._forward = _Wholes()
        self._backward = _Backward()

    def __bool__(self) -> bool:
        return bool(self._places)

    def get(self, x: DTensor) -> DTensor | None:
        """A parameter whole, if it is in a group."""
        place = self._places.get(id(x))
        if place is None:
            return None
        group, k = place
        found = self._forward.use(group, k)
        if found is None:
            self._gather(group, [k] if group.gathered else range(len(group.members)))
            found = self._forward.use(group, k)
        return found

    def _gather(self, group: Group, numbers: Sequence[int]) -> None:
        group.gathered = True
        handles = [group.members[i].handle for i in numbers]
        # with a graph, also where the first to use one of them needs none
        with torch.inference_mode(False), torch.enable_grad():
            wholes = _Gather.apply(group, self._backward, numbers, *handles)
        for i, x in zip(numbers, wholes, strict=True):
            self._registry.add(x, group, i)
        self._forward.add(group, dict(zip(numbers, wholes, strict=True)))

    def pack(self, x: Tensor) -> Any:
        """What autograd keeps of a tensor."""
        if functorch.level_of(x):  # of a gradient inside, on plain tensors
            return x
        over = isinstance(x, DTensor)
        local = local_of(x) if isinstance(x, DTensor) else x
        found = self._registry.find(local)
        if found is None or local.is_conj() or local.is_neg():
            return x
        group, k = found
        if local.dtype != group.members[k].handle.dtype:  # a view of another kind
            return x
        return _Again(self._backward, group, k, local, spec_of(x) if over else None, type(x))  # type: ignore[arg-type]

    def unpack(self, kept: Any) -> Tensor:
        """The tensor for the backward pass."""
        return kept.tensor() if isinstance(kept, _Again) else kept

    def forget(self) -> None:
        """Let go of what the forward pass holds."""
        self._forward.clear()


_open: ContextVar[_Gathering | None] = ContextVar("fluxlike_gathering", default=None)


@contextmanager
def gathering(tensors: Sequence[Any], /) -> Iterator[None]:
    """Inside, the forward pass of a gradient gathers in groups what of these is divided over the data."""
    opened = _Gathering(tensors)
    if not opened:
        yield
        return
    token = _open.set(opened)
    try:
        with torch.autograd.graph.saved_tensors_hooks(opened.pack, opened.unpack):
            yield
    finally:
        _open.reset(token)
        opened.forget()


def _gathered(x: DTensor) -> DTensor | None:
    opened = _open.get()
    return None if opened is None else opened.get(x)


GATHER.append(_gathered)
