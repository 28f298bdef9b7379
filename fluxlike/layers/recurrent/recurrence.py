"""Recurrence: any cell over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fluxlike.layers.auto import autosized
from fluxlike.layers.checks import refuse_input
from fluxlike.layers.errors import fail
from fluxlike.layers.lengths import inside, require_lengths
from fluxlike.transforms.control.scan import scan
from fluxlike.trees.fmap import fmap
from fluxlike.trees.functor import functor

__all__ = ["Recurrence", "over_time"]

#: From one input and a state to an output and the next state.
Step = Callable[[Any, Any], tuple[Any, Any]]


@autosized(cell=None)
@functor(children=("cell",))
class Recurrence:
    """Any cell over the steps of a sequence, as `scan` runs it: under `jit` one loop, however long.

    Args:
        cell: a callable, ``y, state = cell(x, state)``, of the inputs x (N, …) of one step. The state is a
            tree of tensors whose shapes and dtypes stay. A method ``cell.initial_state(x)`` says what it is
            before the first step, where no state is handed in.

    Attributes:
        cell: the cell.

    Input: (N, L, …). ``recurrence(x)`` gives the outputs (N, L, …), ``recurrence(x, state)`` a pair, the
    outputs and the last state.

    With ``lengths=``, integers (N,), each sequence has a length of its own: outputs past it are zero, and the
    last state is that at its end. The tensors of the state then have the batch as their first axis.

    Raises:
        TypeError: a cell that can't be called; from a call: no state, and a cell that knows none.
        ValueError: from a call: an input without steps; lengths outside 1 to L.
        LayerError: from a call: the cell failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> layer = fl.Recurrence(fl.GRUCell(3, 4))
        >>> layer(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 4])
        >>> total = fl.Recurrence(lambda x, total: (total + x, total + x))
        >>> total(torch.ones(1, 4), torch.zeros(1))
        (tensor([[1., 2., 3., 4.]]), tensor([4.]))
    """

    def __init__(self, cell: Step) -> None:
        if not callable(cell) or isinstance(cell, type):
            raise TypeError(f"Recurrence takes a cell, called as y, state = cell(x, state); found {cell!r}")
        self.cell = cell

    def initial_state(self, x: Tensor, /) -> Any:
        """What the cell's state is before the first step of a batch (N, L, …)."""
        _require_sequences(x)
        return self._guarded(_start_of(self.cell), x[:, 0])

    def __call__(self, x: Tensor, state: Any = None, /, *, lengths: Tensor | None = None) -> Any:
        _require_sequences(x)
        given = state is not None
        state = state if given else self.initial_state(x)
        if lengths is not None:
            require_lengths("Recurrence", lengths, x.shape[0], 1, x.shape[1])

        def step(x: Tensor, state: Any) -> tuple[Any, Any]:
            return self._guarded(self.cell, x, state)

        ys, last = over_time(step, state, x.transpose(0, 1), lengths)
        ys = fmap(lambda y: y.transpose(0, 1), ys)
        return (ys, last) if given else ys

    def _guarded(self, f: Callable[..., Any], x: Tensor, *state: Any) -> Any:
        try:
            return f(x, *state)
        except Exception as error:
            fail(".cell", self.cell, (x, *state), error)


def _start_of(cell: Any) -> Callable[[Tensor], Any]:
    start = getattr(cell, "initial_state", None)
    if start is None:
        name = getattr(cell, "__name__", type(cell).__name__)
        raise TypeError(
            f"Recurrence: the cell {name} has no initial_state(x); give it one, or hand a state in: "
            "outputs, state = recurrence(x, state)"
        )
    return start


def _require_sequences(x: Any) -> None:
    if not isinstance(x, Tensor) or x.ndim < 2:
        refuse_input("Recurrence", x, "(N, L, …)")
    require_steps("Recurrence", x)


def require_steps(name: str, x: Tensor) -> None:
    """Refuse sequences (N, L, …) without a step.

    Raises:
        ValueError: there is none.
    """
    if x.shape[1] == 0:
        raise ValueError(f"{name} takes sequences of at least one step, found the shape {tuple(x.shape)}")


def over_time(
    step: Step, state: Any, xs: Tensor, lengths: Tensor | None = None, *, reverse: bool = False
) -> tuple[Any, Any]:
    """Run a step along the first axis: the stacked outputs, zero past each length, and the last state.

    Args:
        step: ``y, state = step(x, state)``.
        state: the first one.
        xs: (L, N, …).
        lengths: (N,); the state stands still past them.
        reverse: whether to run from the last step to the first.
    """
    if lengths is None:
        rows: Any = xs

        def turn(state: Any, x: Any) -> tuple[Any, Any]:
            y, state = step(x, state)
            return state, y
    else:
        rows = xs, inside(lengths, xs.shape[0], xs.device).T

        def turn(state: Any, x: Any) -> tuple[Any, Any]:
            y, new = step(x[0], state)
            return fmap(_keep(x[1]), new, state), fmap(lambda y: _keep(x[1])(y, torch.zeros_like(y)), y)

    last, ys = scan(turn, state, _flipped(rows) if reverse else rows)
    return (_flipped(ys) if reverse else ys), last


def _keep(mask: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The new rows where a sequence goes on, and the old ones elsewhere."""
    return lambda new, old: torch.where(mask.view(-1, *(1 for _ in new.shape[1:])), new, old)


def _flipped(tree: Any) -> Any:
    return fmap(lambda x: x.flip(0), tree)
