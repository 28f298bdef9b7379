"""Leaves that move together by one formula: as they are, in flat blocks, or by the rule's kernel."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike._private import tracing
from fluxlike.optimisers.batch import Batch
from fluxlike.optimisers.fields import Columns, fields_of_state
from fluxlike.optimisers.flat import Buffers, Flat, Piece, blocks, gathered
from fluxlike.optimisers.kernels import Kernel, adjusted_layout, move
from fluxlike.optimisers.leaves import Leaves, Scalar, where
from fluxlike.optimisers.rule import LeafError, hyperparameters, kernel_holds

__all__ = ["Group", "kernel_of"]


def kernel_of(rule: Any, /) -> Kernel | None:
    """The kernel of a rule, if it has one that does what its formula does, for the numbers it has."""
    cls: type = type(rule)
    if not kernel_holds(cls) or any(isinstance(h, Tensor) for h in hyperparameters(rule)):
        return None
    return rule.kernel()


class Group:
    """Leaves that move together: before, and after in `new` (fields of states) and `out`."""

    def __init__(self, rule: Any, batch: Batch, members: list[int], mask: Tensor | None, plain: bool) -> None:
        self.rule, self.mask, self.plain = rule, mask, plain
        self.last, self.consumed = batch.last, batch.consumed
        self.xs = [batch.params[k] for k in members]
        self.gs = [batch.grads[k] for k in members]
        self.out = list(self.xs if batch.last else self.gs)
        self.columns = Columns([batch.states[k] for k in members], rule.shared)
        self.fields, self.scalars = self.columns.fields, self.columns.scalars
        self.new = {name: list(column) for name, column in self.fields.items()}
        self._check(members)
        if "step" in self.scalars:
            self._advance("step", self.scalars["step"] + 1)

    def _check(self, members: list[int]) -> None:
        same_shape = self.rule.elementwise
        for t in self.scalars.values():
            if t.device != self.xs[0].device:
                self._report_misfit(members[0], self.xs[0], t)
        for column in self.fields.values():
            for k, x, t in zip(members, self.xs, column, strict=True):
                if t.dtype is not x.dtype or (same_shape and t.shape != x.shape) or t.device != x.device:
                    self._report_misfit(k, x, t)

    def _report_misfit(self, k: int, x: Tensor, t: Tensor) -> NoReturn:
        if t.device != x.device:
            problem = (
                f"is on {t.device}, the parameter on {x.device}; write state = fluxlike.to_device(state, "
                f"{str(x.device)!r})"
            )
        elif t.dtype != x.dtype:
            problem = (
                f"is of {t.dtype}, the parameter of {x.dtype}; cast the state as the model was, for example "
                "by fluxlike.f64"
            )
        else:
            problem = (
                f"holds a tensor of shape {tuple(t.shape)}, the parameter has {tuple(x.shape)}; after "
                "surgery, call setup(rule, model, carry=state)"
            )
        raise LeafError(k, f"the state {problem}")

    def _advance(self, name: str, value: Scalar) -> None:
        old = self.scalars[name]
        new = value.to(old.dtype) if isinstance(value, Tensor) else torch.full_like(old, value)
        self.scalars[name] = new if self.mask is None else torch.where(self.mask, new, old)

    def run(self) -> None:
        """Move the leaves: by a kernel those that it can take, by the formula the others."""
        everything = list(range(len(self.xs)))
        taken = self._run_kernel()
        rest = [j for j in everything if j not in taken] if taken else everything
        if rest:
            self._run_formula(rest)

    def new_states(self) -> Iterator[Any]:
        """The states after, leaf by leaf."""
        return self.columns.rows(len(self.xs), self.new, self.scalars)

    def _run_kernel(self) -> set[int]:
        """Move the leaves that the rule's kernel can take, and say which."""
        kernel = kernel_of(self.rule) if self.plain and self.last else None
        if kernel is None:
            return set()
        taken = []
        for j, (x, g, *fields) in enumerate(zip(self.xs, self.gs, *self.fields.values(), strict=True)):
            fitting = adjusted_layout(x, g, fields)
            if fitting is not None:
                self.gs[j] = fitting
                taken.append(j)
        if not taken:
            return set()
        skip = None if self.mask is None else torch.where(self.mask, 0.0, 1.0)
        columns = copy.copy(self.columns)
        columns.fields = {name: [column[j] for j in taken] for name, column in self.fields.items()}
        xs, gs = [self.xs[j] for j in taken], [self.gs[j] for j in taken]
        moved, new_fields = move(kernel, columns, xs, gs, skip, self.consumed)
        for after, new in ((self.out, moved), *((self.new[name], new_fields[name]) for name in new_fields)):
            for j, t in zip(taken, new, strict=True):
                after[j] = t
        return set(taken)

    # Formulas

    def _run_formula(self, js: list[int]) -> None:
        """Move leaves by the formula: packed into flat blocks where they can be, else as they are."""
        self.values = {name: _number(t) for name, t in self.scalars.items()}
        self.after = self.values
        packed = [j for j in js if self._can_pack(j)]
        if packed:
            buffers = Buffers(self.xs[0].dtype)
            for block in blocks(self.xs, packed):
                self._run_block(block, partial(gathered, block=block, buffers=buffers))
        rest = [j for j in js if not self._can_pack(j)] if packed else js
        if rest:
            self._run_block([(j, 0, -1) for j in rest], lambda column: Leaves([column[j] for j in rest]))
        for name in self.scalars:
            if name != "step":
                self._advance(name, self.after[name])

    def _can_pack(self, j: int) -> bool:
        if not (self.plain and self.rule.elementwise and self.xs[j].device.type == "cpu"):
            return False
        columns = (self.xs, self.gs, *self.fields.values())
        return self.xs[j].numel() > 0 and all(
            type(column[j]) is Tensor and column[j].is_contiguous() for column in columns
        )

    def _run_block(self, block: list[Piece], take: Callable[[list[Tensor]], Leaves]) -> None:
        before = {name: take(column) for name, column in self.fields.items()}
        x = take(self.xs)
        new, step = self.rule.formula(self.columns.state({**before, **self.values}), x, take(self.gs))
        parts = dict(zip(self.columns.names, fields_of_state(new), strict=True))
        self.after = {name: parts[name] for name in self.scalars}
        if self.mask is not None:
            step = where(self.mask, step, 0.0)
        if self.consumed is not None and self.plain:
            parts = self._settled(block, parts, before)
        if self.last:
            self._subtract(block, x, step)
        else:
            self._put(self.out, block, step, own=False)
        for name, old in before.items():
            if parts[name] is not old:
                value = parts[name] if self.mask is None else where(self.mask, parts[name], old)
                self._put(self.new[name], block, value)

    def _settled(
        self, block: list[Piece], parts: dict[str, Any], before: dict[str, Leaves]
    ) -> dict[str, Any]:
        """Fields that stand apart from the memory that is about to be written over."""
        columns = (self.xs, *self.fields.values())
        inputs = {id(column[j]) for column in columns for j, _, _ in block}

        def apart(v: Leaves) -> Leaves:
            if isinstance(v, Flat):
                v.settle()
                return v
            return v.each(lambda t: t.clone() if id(t) in inputs else t)

        return {f: apart(v) if f in before and v is not before[f] else v for f, v in parts.items()}

    def _subtract(self, block: list[Piece], x: Leaves, step: Leaves) -> None:
        j, start, stop = block[0]
        if len(block) > 1 or not isinstance(x, Flat) or self.consumed is None or not self.xs[j].ndim:
            self._put(self.out, block, x - step)
            return
        if start == 0:
            self.out[j] = self._target(self.xs[j])
        x.less(step, self.out[j].view(-1)[start:stop])  # type: ignore[arg-type]

    def _put(self, column: list[Tensor], block: list[Piece], result: Leaves, own: bool = True) -> None:
        """Put results where they belong: over donated memory, in the place of a piece, or as they are."""
        donated = own and self.plain and self.consumed is not None
        if isinstance(result, Flat):
            self._unpack(column, block, result, donated)
            return
        for (j, _, _), v in zip(block, result.tensors, strict=True):
            column[j] = self._target(column[j]).copy_(v) if donated and v.ndim else v

    def _unpack(self, column: list[Tensor], block: list[Piece], result: Flat, donated: bool) -> None:
        j, start, stop = block[0]
        whole = column[j].numel()
        if len(block) == 1 and stop - start < whole:
            if start == 0:  # the first piece makes the whole
                column[j] = self._target(column[j]) if donated else torch.empty_like(column[j])
            column[j].view(-1)[start:stop].copy_(result.tensors[0])
            return
        if len(block) == 1 and not donated:
            taken = result.taken()
            if taken is not None:
                column[j] = taken.view(column[j].shape).detach()  # no view of a base
                return
        sizes = [stop - start for _, start, stop in block]
        for (j, _, _), v in zip(block, result.tensors[0].split(sizes), strict=True):
            old = column[j]
            column[j] = self._target(old).copy_(v.view(old.shape)) if donated else v.view(old.shape).clone()

    def _target(self, x: Tensor) -> Tensor:
        """A donated tensor, to be written over under a new object."""
        assert self.consumed is not None
        if not x.ndim:
            return torch.empty_like(x)  # numbers may be shared, so they are not written over
        self.consumed.append(x)
        return x.detach()


def _number(t: Tensor) -> Scalar:
    """A counter as a number, or, where it can't be read, in a dtype in which to take its powers."""
    if tracing.readable(t):
        return t.item()
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)
