"""Counters of steps, which leaves that move together share, and the masks that hold them back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import tracing

__all__ = ["advanced", "both", "by_counter", "read"]


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
