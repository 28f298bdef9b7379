"""`Formula`: a rule written for one parameter, run over many.

Leaves move together when they share dtype, device and counters, so that a formula sees one counter.
Where tensors are plain numbers in memory, formulas run in blocks that stay in the processor's cache,
and results go to new memory or, donated, over the old; torch's fused kernels take the leaves they can.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxlike._private import fused, tracing
from fluxlike.optimisers.batch import Batch, Moved, passes, read
from fluxlike.optimisers.leaves import Leaves, Scalar, where
from fluxlike.optimisers.rule import LeafError, is_rule, kernel_holds

__all__ = ["Formula", "Kernel", "hyperparameters", "settled"]

Kernel = Callable[[Any, list[Tensor], list[Tensor], Tensor | None], None]
"""Moves lists in place: ``kernel(state, params, grads, skip)``, the state a tuple of lists."""

_BLOCK = {"cpu": 1 << 20, "cuda": 1 << 26}  # bytes of one list under a formula
_KERNEL_BLOCK = 1 << 19  # bytes of one list; the four lists of a kernel fit a core's cache


class Formula:
    """A rule whose formula is written for one parameter; base of the built-in rules.

    The state is None, a tensor, or a NamedTuple of tensors. A formula gets `Leaves`, which compute as
    a tensor does, and returns them; it does not look at values, and writes nothing in place.
    """

    #: Fields of the state that all leaves that move together share: 0-d tensors. A formula gets numbers
    #: or 0-d tensors for them; the one named ``step`` counts this step, from 1, and is kept for it.
    shared: ClassVar[tuple[str, ...]] = ()

    #: Whether every number moves by itself, so that a leaf may be cut into pieces.
    elementwise: ClassVar[bool] = True

    #: Whether a complex parameter can't be taken as pairs of real numbers.
    real_only: ClassVar[bool] = False

    def init(self, param: Tensor, /) -> Any:
        """The state for one parameter."""
        return None

    def formula(self, state: Any, x: Leaves, g: Leaves, /) -> tuple[Any, Leaves]:
        """The next state and the step, which is subtracted from x."""
        raise NotImplementedError

    def kernel(self) -> Kernel | None:
        """A kernel that does what the formula does, for numbers as hyperparameters; None without."""
        return None

    def apply(self, state: Any, param: Tensor, grad: Tensor, /) -> tuple[Any, Tensor]:
        """The formula for one leaf."""
        states, steps = self.apply_all([state], [param], [grad])
        return states[0], steps[0]

    def apply_all(
        self, states: Sequence[Any], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[Any], Sequence[Tensor]]:
        """The formula for all leaves that share the rule."""
        batch = Batch(list(states), list(params), list(grads), [None] * len(params))
        moved = self.perform(batch)
        return moved.states, moved.stepped(batch)

    def perform(self, batch: Batch, /) -> Moved:
        """The formula, in groups, blocks and kernels."""
        rule = settled(self)
        plain = tracing.concrete() and not _recorded(rule, batch)
        states, out = list(batch.states), list(batch.params if batch.last else batch.grads)
        for members in _alike(rule, batch):
            passing = passes(batch.passing[members[0]])
            if passing is False:
                if not batch.last:
                    for k in members:
                        out[k] = torch.zeros_like(out[k])
                continue
            group = _Group(rule, batch, members, None if passing is True else passing, plain)
            group.run()
            for k, state, x in zip(members, group.new_states(), group.out, strict=True):
                states[k], out[k] = state, x
        if batch.last:
            return Moved(states, None, out, batch.passing)
        return Moved(states, out, None, batch.passing)


def hyperparameters(rule: Any, /) -> Iterator[Any]:
    """The values of a rule's fields, those of pairs and of rules inside it one by one."""
    if not dataclasses.is_dataclass(rule):
        return
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if is_rule(part):
                yield from hyperparameters(part)
            else:
                yield part


def settled(rule: Any, /) -> Any:
    """The rule with numbers for hyperparameters that are 0-d tensors whose value can be read."""

    def read(v: Any) -> Any:
        return v.item() if isinstance(v, Tensor) and tracing.readable(v) else v

    if not any(isinstance(v, Tensor) for v in hyperparameters(rule)):
        return rule
    new = copy.copy(rule)
    for field in dataclasses.fields(rule):
        value = getattr(rule, field.name)
        value = tuple(map(read, value)) if type(value) is tuple else read(value)
        object.__setattr__(new, field.name, settled(value) if is_rule(value) else value)
    return new


def _recorded(rule: Any, batch: Batch) -> bool:
    """Whether autograd records what is computed here."""
    if not torch.is_grad_enabled():
        return False
    tensors = (*batch.params, *batch.grads, *(h for h in hyperparameters(rule) if isinstance(h, Tensor)))
    return any(t.requires_grad for t in tensors) or any(
        t.requires_grad for s in batch.states for t in _fields(s) if t is not None
    )


def _fields(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)


def _alike(rule: Formula, batch: Batch) -> list[list[int]]:
    """The leaves grouped by dtype, device, mask, counters and the kind of their state."""
    groups: dict[Any, list[int]] = {}
    tuples = (s for s in batch.states if isinstance(s, tuple))
    values = read(t for s in tuples for t in (getattr(s, name) for name in rule.shared) if t is not None)
    for k, (s, x, mask) in enumerate(zip(batch.states, batch.params, batch.passing, strict=True)):
        key: list[Any] = [x.dtype, x.device, id(mask), type(s)]
        if isinstance(s, tuple):
            key.extend(values.get(id(t), t is None) for t in s)
        groups.setdefault(tuple(key), []).append(k)
    return list(groups.values())


_Piece = tuple[int, int | None, int | None]  # a leaf of the group, whole or from one number to another


class _Group:
    """Leaves that move together: before, and after in `new` (fields of states) and `out`."""

    def __init__(
        self, rule: Formula, batch: Batch, members: list[int], mask: Tensor | None, plain: bool
    ) -> None:
        self.rule, self.mask, self.plain = rule, mask, plain
        self.last, self.consumed = batch.last, batch.consumed
        self.xs = [batch.params[k] for k in members]
        self.gs = [batch.grads[k] for k in members]
        self.out = list(self.xs if batch.last else self.gs)
        first = batch.states[members[0]]
        self.kind: Any = type(first)
        self.names: tuple[str, ...] = getattr(self.kind, "_fields", ("",))
        self.fields: dict[str, list[Tensor]] = {}  # each leaf has its own
        self.scalars: dict[str, Tensor] = {}  # one for all
        columns = zip(*(_fields(batch.states[k]) for k in members), strict=True)
        for name, column in zip(self.names, columns, strict=True):
            if name in rule.shared:
                self.scalars[name] = column[0]
            elif column[0] is not None:
                self.fields[name] = list(column)
        self.new = {name: list(column) for name, column in self.fields.items()}
        self._check(members)
        if "step" in self.scalars:
            self._advance("step", self.scalars["step"] + 1)

    def _check(self, members: list[int]) -> None:
        for column in self.fields.values():
            for k, x, t in zip(members, self.xs, column, strict=True):
                if self.rule.elementwise and t.shape != x.shape:
                    raise LeafError(
                        k,
                        f"the state holds a tensor of shape {tuple(t.shape)}, the parameter has "
                        f"{tuple(x.shape)}; after surgery, call setup(rule, model, carry=state)",
                    )
                if t.dtype != x.dtype:
                    raise LeafError(
                        k,
                        f"the state is of {t.dtype}, the parameter of {x.dtype}; cast the state as the "
                        "model was, for example by fluxlike.f64",
                    )

    def _advance(self, name: str, value: Scalar) -> None:
        old = self.scalars[name]
        new = value.to(old.dtype) if isinstance(value, Tensor) else torch.full_like(old, value)
        self.scalars[name] = new if self.mask is None else torch.where(self.mask, new, old)

    def run(self) -> None:
        """Move the leaves: by a kernel those that it can take, by the formula the others."""
        everything = list(range(len(self.xs)))
        kernel = self._kernel()
        taken = [j for j in everything if self._fits(j)] if kernel else []
        if kernel and taken:
            self._run_kernel(kernel, taken)
        rest = everything if not taken else sorted(set(everything) - set(taken))
        if rest:
            self._run_formula(rest)

    def new_states(self) -> Iterator[Any]:
        """The states after, leaf by leaf."""
        if self.kind is type(None):
            yield from (None for _ in self.xs)
        elif not issubclass(self.kind, tuple):
            yield from self.new[""]
        else:
            n = len(self.xs)
            known: dict[str, list[Any]] = {name: [t] * n for name, t in self.scalars.items()}
            known.update(self.new)
            columns = [known.get(f, [None] * n) for f in self.names]
            yield from (self.kind(*row) for row in zip(*columns, strict=True))

    # Kernels

    def _kernel(self) -> Kernel | None:
        if not (self.plain and self.last and self.xs[0].device.type in ("cpu", "cuda")):
            return None
        cls: type = type(self.rule)
        numbers = not any(isinstance(h, Tensor) for h in hyperparameters(self.rule))
        return self.rule.kernel() if numbers and kernel_holds(cls) else None

    def _fits(self, j: int) -> bool:
        x, g = self.xs[j], self.gs[j]
        if g.stride() != x.stride():
            g = self.gs[j] = torch.empty_like(x).copy_(g)  # that of a sum is one number, expanded
        return fused.fits(x, [g, *(column[j] for column in self.fields.values())])

    def _run_kernel(self, kernel: Kernel, js: list[int]) -> None:
        skip = None if self.mask is None else torch.where(self.mask, 0.0, 1.0)
        count = self.scalars["step"].to(torch.float32) if "step" in self.scalars else None
        for block in self._kernel_blocks(js):
            columns = {name: self._written(column, block) for name, column in self.fields.items()}
            xs = self._written(self.xs, block)
            state = self._state({**columns, "step": [count] * len(block)})
            kernel(state, xs, [self.gs[j] for j in block], skip)
            for after, written in ((self.out, xs), *((self.new[f], c) for f, c in columns.items())):
                for j, t in zip(block, written, strict=True):
                    after[j] = t

    def _kernel_blocks(self, js: list[int]) -> list[list[int]]:
        """Leaves in blocks whose copies are still in the cache when they are used."""
        if self.consumed is not None or self.xs[0].device.type != "cpu":
            return [js]
        return [[j for j, _, _ in block] for block in _blocks(self.xs, js, _KERNEL_BLOCK, lambda j: False)]

    def _written(self, column: list[Tensor], block: list[int]) -> list[Tensor]:
        """Tensors to write over: copies, or the donated ones."""
        return [self._target(column[j]) if self.consumed is not None else column[j].clone() for j in block]

    def _target(self, x: Tensor) -> Tensor:
        """A donated tensor, to be written over under a new object."""
        assert self.consumed is not None
        self.consumed.append(x)
        return x.detach()

    # Formulas

    def _run_formula(self, js: list[int]) -> None:
        values = {name: _number(t) for name, t in self.scalars.items()}
        after = values
        for block in self._formula_blocks(js):
            before = {name: _take(column, block) for name, column in self.fields.items()}
            x = _take(self.xs, block)
            new, step = self.rule.formula(self._state({**before, **values}), x, _take(self.gs, block))
            if self.mask is not None:
                step = where(self.mask, step, 0.0)
            fields, after = self._taken_apart(new, before)
            for name, column in self.new.items():
                if fields[name] is not before[name]:
                    self._put(column, block, fields[name])
            self._put(self.out, block, x - step if self.last else step, own=self.last)
        for name in self.scalars:
            if name != "step":
                self._advance(name, after[name])

    def _formula_blocks(self, js: list[int]) -> Iterator[list[_Piece]]:
        if not self.plain:
            return iter([[(j, None, None) for j in js]])
        size = _BLOCK.get(self.xs[0].device.type, _BLOCK["cuda"])
        return _blocks(self.xs, js, size, self._can_cut)

    def _can_cut(self, j: int) -> bool:
        columns = (self.xs, self.gs, *self.fields.values())
        return self.rule.elementwise and all(column[j].is_contiguous() for column in columns)

    def _state(self, fields: dict[str, Any]) -> Any:
        """A state of the rule's kind with something else than tensors in it."""
        if self.kind is type(None):
            return None
        if not issubclass(self.kind, tuple):
            return fields[""]
        return self.kind(*(fields.get(f) for f in self.names))

    def _taken_apart(
        self, new: Any, before: dict[str, Leaves]
    ) -> tuple[dict[str, Leaves], dict[str, Scalar]]:
        parts = dict(zip(self.names, _fields(new), strict=True))
        fields = {name: parts[name] for name in self.fields}
        if self.mask is not None:
            fields = {name: where(self.mask, v, before[name]) for name, v in fields.items()}
        return fields, {name: parts[name] for name in self.scalars}

    def _put(self, column: list[Tensor], block: list[_Piece], new: Leaves, own: bool = True) -> None:
        """Put results where they belong: as they are, in the piece's place, or over the donated one."""
        donated = own and self.plain and self.consumed is not None
        for (j, start, stop), v in zip(block, new.tensors, strict=True):
            if start is None and not (donated and v.ndim):
                column[j] = v
                continue
            if not start:  # the first piece makes the whole
                column[j] = self._target(column[j]) if donated else torch.empty_like(column[j])
            target = column[j] if start is None else column[j].view(-1)[start:stop]
            target.copy_(v)


def _number(t: Tensor) -> Scalar:
    """A counter as a number, or, where it can't be read, in a dtype in which to take its powers."""
    if tracing.readable(t):
        return t.item()
    return t.to(torch.float32 if t.device.type == "mps" else torch.float64)


def _take(column: list[Tensor], block: list[_Piece]) -> Leaves:
    return Leaves([column[j] if a is None else column[j].view(-1)[a:b] for j, a, b in block])


def _blocks(
    xs: list[Tensor], js: list[int], size: int, can_cut: Callable[[int], bool]
) -> Iterator[list[_Piece]]:
    """Leaves in blocks of about so many bytes; what is much larger is cut, where it can be."""
    block: list[_Piece] = []
    filled = 0
    for j in js:
        x = xs[j]
        n = x.numel() * x.element_size()
        if n > 2 * size and can_cut(j):
            step = size // x.element_size()
            for start in range(0, x.numel(), step):
                yield [(j, start, min(start + step, x.numel()))]
            continue
        block.append((j, None, None))
        filled += n
        if filled >= size:
            yield block
            block, filled = [], 0
    if block:
        yield block
