"""`cond`: one of two branches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fluxlike._private import higher_order
from fluxlike.scope import seeded
from fluxlike.scope.assigned import assign, current, is_held
from fluxlike.scope.branch import Apart
from fluxlike.transforms.control.choice import choose
from fluxlike.transforms.control.form import Form
from fluxlike.transforms.control.recorded import Unrecordable, examples
from fluxlike.transforms.control.traced import derive_all
from fluxlike.transforms.custom import is_differentiated
from fluxlike.trees.structure import flatten

__all__ = ["cond"]


def cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], /, *operands: Any) -> Any:
    """``true_fn(*operands)`` where `pred` is true, else ``false_fn(*operands)``.

    With a value to look at, it is a Python ``if``: one branch runs. Under `jit` it is recorded as one
    operation that runs one branch, forward and backward. Under `vmap` over `pred`, both branches run and
    each member takes its own; so they do wherever else a branch can't be taken. What the branch that is
    not taken gives, infinities and NaN too, goes into no result and no gradient of an operand (it can
    reach the gradient of what a branch closes over: pass it as an operand). Buffers are assigned by the
    branch that is taken.

    Args:
        pred: a bool, or a 0-d tensor of bool.
        true_fn: a function of the operands.
        false_fn: another one. Where both run or are recorded, they return trees of one form: structure,
            shapes, dtypes and constants.
        operands: trees.

    Returns:
        What the branch returned.

    Raises:
        ValueError: `pred` has a shape or is not of bool; the branches return different forms. It names the
            place.
        TypeError: `pred` is neither a bool nor a tensor, or a branch is no function.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.tensor(-4.0)
        >>> fl.cond(x > 0, torch.sqrt, torch.zeros_like, x)
        tensor(0.)
        >>> fl.vmap(lambda x: fl.cond(x > 0, torch.sqrt, torch.zeros_like, x))(torch.tensor([-4.0, 4.0]))
        tensor([0., 2.])
    """
    for name, f in (("true_fn", true_fn), ("false_fn", false_fn)):
        if not callable(f):
            raise TypeError(
                f"cond takes two functions and their operands, found {type(f).__name__} as {name}; write "
                "cond(pred, lambda x: …, lambda x: …, x)"
            )
    choice = _Choice((true_fn, false_fn), operands)
    if not isinstance(pred, Tensor):
        if not isinstance(pred, (bool, np.bool_)):
            raise TypeError(
                f"cond takes a bool or a 0-d tensor of bool, found {type(pred).__name__} {pred!r}"
            )
        return choice.take(bool(pred))
    if pred.ndim:
        raise ValueError(
            f"cond chooses one branch by a 0-d tensor, found the shape {tuple(pred.shape)}; reduce it with "
            ".any() or .all(), choose entry by entry by torch.where, or member by member under fluxlike.vmap"
        )
    if pred.dtype != torch.bool:
        raise ValueError(f"cond takes a tensor of bool, found {pred.dtype}; write x != 0 or x > 0")
    if higher_order.has_value(pred):
        return choice.take(bool(pred))
    if higher_order.recording():
        with suppress(Unrecordable):
            return choice.record(pred)
    return choice.select(pred)


class _Choice:
    """Two functions and their operands, and the draws that both start with."""

    def __init__(self, branches: Sequence[Callable[..., Any]], operands: tuple[Any, ...]) -> None:
        self._branches, self._operands = branches, operands
        self._draws: seeded.Draws | None = None
        outer = seeded.active()
        if outer is not None:
            # Draws of their own, after which those outside go on alike, whichever branch was taken.
            with suppress(RuntimeError):  # where nothing may be drawn, the branch itself will say so
                self._draws = outer.folded(outer.next()[1] + _APART)
                self._mark = outer.mark()

    def _run(self, n: int, operands: Sequence[Any]) -> Any:
        if self._draws is None:
            return self._branches[n](*operands)
        token = seeded.enter(self._draws)
        try:
            return self._branches[n](*operands)
        finally:
            seeded.leave(token)
            self._draws.rewind(self._mark)

    def take(self, first: bool) -> Any:
        """Run one branch."""
        return self._run(0 if first else 1, self._operands)

    def select(self, pred: Tensor) -> Any:
        """Run both branches and take the results of one."""
        trees, moved = [], []
        for n, taken in enumerate((pred, ~pred)):
            with Apart() as apart:
                trees.append(self._run(n, _guarded(self._operands, taken)))
            moved.append(apart.assigned())
        form, yes, no = _common_form(*trees)
        for buffer, *values in _both(moved):
            assign(buffer, _where(pred, *values))
        return form.fill([_where(pred, a, b) for a, b in zip(yes, no, strict=True)])

    def record(self, pred: Tensor) -> Any:
        """Both branches as one operation of the trace."""
        given = Form(self._operands, "the operands")
        trees, moved = [], []
        for n in range(2):
            slices = examples(given.tensors)
            with higher_order.unrecorded(), Apart() as apart, torch.no_grad():
                derive_all(slices, given.tensors)
                trees.append(self._run(n, given.fill(slices)))
            moved.append(apart.assigned())
        form, *_ = _common_form(*trees)
        buffers = [buffer for buffer, *_ in _both(moved)]

        def branch(n: int) -> Callable[[list[Tensor]], list[Tensor]]:
            def run(tensors: list[Tensor]) -> list[Tensor]:
                with Apart() as apart:
                    derive_all(tensors, given.tensors)
                    tree = self._run(n, given.fill(tensors))
                found = {id(buffer): value for buffer, value in apart.assigned()}
                return [*form.tensors_of(flatten(tree)[0]), *(found.get(id(b), current(b)) for b in buffers)]

            return run

        out = choose(pred, [branch(0), branch(1)], given.tensors)
        count = len(form.tensors)
        for buffer, value in zip(buffers, out[count:], strict=True):
            assign(buffer, value)
        return form.fill(out[:count])


_APART = 1 << 62  # added to the number of a draw, so that no key folded by a member or a turn is met


def _common_form(yes: Any, no: Any) -> tuple[Form, list[Tensor], list[Tensor]]:
    """The form that the results of both branches have, and the tensors of each."""
    form = Form(yes, "what true_fn returned")
    leaves = form.check(
        no, "what false_fn returned", "both branches return one form where either may be taken"
    )
    form.untie(leaves)
    return form, form.tensors, form.tensors_of(leaves)


def _both(moved: Sequence[list[tuple[Tensor, Tensor]]]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each buffer that a branch assigned, with its value after either."""
    yes, no = ({id(buffer): value for buffer, value in each} for each in moved)
    buffers = {id(buffer): buffer for each in moved for buffer, _ in each}
    return [(b, yes.get(i, current(b)), no.get(i, current(b))) for i, b in buffers.items()]


def _where(pred: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return a if a is b else torch.where(pred, a, b)


def _guarded(operands: tuple[Any, ...], taken: Tensor) -> tuple[Any, ...]:
    """The operands, whose gradient is zero where a branch is not taken, even if it computes NaN there."""
    form = Form(operands, "the operands")
    return form.fill([_guard(x, taken) for x in form.tensors])


def _guard(x: Tensor, taken: Tensor) -> Tensor:
    if not is_differentiated(x) or is_held(x):
        return x
    return torch.where(taken, x, x.detach())
