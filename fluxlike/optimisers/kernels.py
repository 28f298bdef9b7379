"""Moving leaves by one of torch's fused kernels, on copies or over donated memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import fused
from fluxlike.optimisers.fields import Columns

__all__ = ["Kernel", "adjusted_layout", "move"]

Tensors = list[Tensor]

Kernel = Callable[[Any, Tensors, Tensors, Tensor | None], None]
"""Moves lists in place: ``kernel(state, params, grads, skip)``, the state a tuple of lists."""

_BLOCK = 1 << 19  # bytes of one list; the four lists of a kernel fit a core's cache


def adjusted_layout(x: Tensor, g: Tensor, fields: Tensors) -> Tensor | None:
    """The gradient in the layout of its parameter; None where the kernels can't take the leaf."""
    if g.stride() != x.stride():
        g = torch.empty_like(x).copy_(g)  # that of a sum is one number, expanded
    return g if fused.fits(x, [g, *fields]) else None


def move(
    kernel: Kernel,
    columns: Columns,
    xs: Tensors,
    gs: Tensors,
    skip: Tensor | None,
    consumed: Tensors | None,
) -> tuple[Tensors, dict[str, Tensors]]:
    """The parameters and the fields of the states after the step; their scalars are those of this step.

    Args:
        kernel: the kernel.
        columns: the states.
        xs: the parameters.
        gs: the gradients.
        skip: 1 where nothing is to move, a 0-d float32 tensor.
        consumed: where donated tensors are put down; None to write on copies.
    """
    t = columns.scalars.get("step")
    count = None if t is None else t.to(torch.float32)
    if consumed is not None:
        lists = [_over(column, consumed) for column in (xs, *columns.fields.values())]
        _call(kernel, columns, lists, gs, count, skip)
        # The kernels don't say that they write, and a graph that saved a tensor must notice.
        torch.autograd.graph.increment_version([x for column in lists for x in column])
    else:
        lists = [[] for _ in range(1 + len(columns.fields))]
        for start, stop in _ranges(xs):
            part = [[x.clone() for x in column[start:stop]] for column in (xs, *columns.fields.values())]
            _call(kernel, columns, part, gs[start:stop], count, skip)
            for whole, piece in zip(lists, part, strict=True):
                whole += piece
    return lists[0], dict(zip(columns.fields, lists[1:], strict=True))


def _over(column: Tensors, consumed: Tensors) -> Tensors:
    """Donated tensors, to be written over under new objects; numbers may be shared, so are copied."""
    consumed += [x for x in column if x.ndim]
    return [x.detach() if x.ndim else x.clone() for x in column]


def _call(
    kernel: Kernel, columns: Columns, lists: list[Tensors], gs: Tensors, count: Tensor | None, skip: Any
) -> None:
    fields: dict[str, Any] = dict(zip(columns.fields, lists[1:], strict=True))
    if count is not None:
        fields["step"] = [count] * len(gs)
    kernel(columns.state(fields), lists[0], gs, skip)


def _ranges(xs: Tensors) -> list[tuple[int, int]]:
    """Ranges of leaves; on the CPU so small that copies are still in the cache when they are used."""
    if xs[0].device.type != "cpu":
        return [(0, len(xs))]
    ranges, start, size = [], 0, 0
    for i, x in enumerate(xs):
        size += x.numel() * x.element_size()
        if size >= _BLOCK:
            ranges.append((start, i + 1))
            start, size = i + 1, 0
    return ranges if start == len(xs) else [*ranges, (start, len(xs))]
