"""Counters of steps, which leaves that move together share, and the masks that hold them back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike.optimisers.rule import key_of

__all__ = ["advanced", "both", "by_counter", "counter", "read", "shared_counters"]


def counter(param: Tensor, /, start: float = 0, kind: Any = None) -> Tensor:
    """A 0-d tensor on the parameter's device, int64 for a count of steps, float64 for a float.

    Leaves that move together share it, so that it is computed once for all of them; those of another
    `kind` have their own.
    """
    dtype = torch.int64 if isinstance(start, int) else torch.float64
    if dtype == torch.float64 and param.device.type == "mps":
        dtype = torch.float32  # a device without float64

    def make() -> Tensor:
        return torch.full((), start, dtype=dtype, device=param.device)

    known = _counters.get()
    return make() if known is None else known.get(start, kind, make)


@contextmanager
def shared_counters() -> Iterator[_Counters]:
    """Inside, `counter` gives one tensor for all leaves that move together."""
    counters = _Counters()
    token = _counters.set(counters)
    try:
        yield counters
    finally:
        _counters.reset(token)


class _Counters:
    """The counters of one `setup`: leaves of one rule and dtype share them, field by field."""

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}
        self._leaf: tuple[Any, ...] = ()
        self._number = 0

    def of(self, rule: Any, param: Tensor) -> None:
        """Say whose counters come next."""
        self._leaf, self._number = (key_of(rule), param.dtype, param.device), 0

    def get(self, start: float, kind: Any, make: Callable[[], Tensor]) -> Tensor:
        """The counter of this leaf that stands at the same place as that of an earlier one."""
        self._number += 1
        key = (*self._leaf, self._number, start, kind)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


_counters: ContextVar[_Counters | None] = ContextVar("fluxlike_counters", default=None)


def by_counter(counters: Sequence[Tensor]) -> list[list[int]]:
    """Leaves grouped by the value of their counter, or, where it can't be read, by the counter."""
    values = read(counters)
    groups: dict[Any, list[int]] = {}
    for k, t in enumerate(counters):
        groups.setdefault((t.device, values[id(t)]), []).append(k)
    return list(groups.values())


_MANY = 8  # so many counters on a device are worth one wait, after which they are shared


def read(counters: Iterable[Tensor]) -> dict[int, Any]:
    """By the ``id`` of each counter its value; or, where it can't be read, what only it has."""
    distinct = {id(t): t for t in counters}
    waiting = [t for t in distinct.values() if not tracing.readable(t)]
    values: dict[int, Any] = {key: t.item() for key, t in distinct.items() if tracing.readable(t)}
    if len(waiting) > _MANY and tracing.concrete():
        values.update((id(t), t.item()) for t in waiting)
    else:
        values.update((id(t), (id(t),)) for t in waiting)
    return values


def advanced(counters: Sequence[Tensor], passing: Sequence[Tensor | None]) -> list[Tensor]:
    """The counters after a step, where it passes; leaves that count together share them still."""
    after: dict[tuple[int, int], Tensor] = {}
    keys = [(id(t), id(mask)) for t, mask in zip(counters, passing, strict=True)]
    for key, t, mask in zip(keys, counters, passing, strict=True):
        if key not in after:
            after[key] = t + 1 if mask is None else torch.where(mask, t + 1, t)
    return [after[key] for key in keys]


def both(masks: Sequence[Tensor | None], others: Sequence[Tensor]) -> list[Tensor | None]:
    """For each leaf, a mask that is true where two are; shared where both are."""
    known: dict[tuple[int, int], Tensor] = {}
    result: list[Tensor | None] = []
    for a, b in zip(masks, others, strict=True):
        key = (id(a), id(b))
        if key not in known:
            known[key] = b if a is None else a & b
        result.append(known[key])
    return result
