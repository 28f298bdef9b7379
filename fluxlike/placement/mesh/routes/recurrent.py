"""Routes of torch's recurrent kernels: rows on axis 0 or 1 of the input, and on axis 1 of the states."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from fluxlike.placement.mesh.routes.random import apart
from fluxlike.placement.mesh.rowwise import Divided, Rowwise, Whole, tensors_over

__all__ = ["ROUTES"]


def _sequences(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """A kernel of sequences: (input, hx, weights, biases, layers, dropout, train, both ways, batch first)."""
    if len(args) != 9 or isinstance(args[3], (tuple, list)) or args[0].ndim != 3:
        # Packed sequences, (data, batch_sizes, hx, weights, …): a row of these is of some example, so every
        # rank computes them all.
        return Whole()(func, args, kwargs)
    x, states, axis = args[0], list(tensors_over(args[1])), 0 if args[-1] else 1
    rows = Divided([x, *states], [axis, *(1 for _ in states)])
    drawn = apart(x.device_mesh, rows.at(axis), x.device) if args[5] and args[6] else nullcontext()
    with drawn:
        y, *after = func(*map(rows.enter, args))
    return rows.leave(y, axis), *rows.leave(after, 1)


_CELL = Rowwise(0, 1, "input", "hx")
_CELLS = (torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
_SEQUENCES = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)
_PACKING = (torch._pack_padded_sequence, torch._pad_packed_sequence)

ROUTES: dict[Any, Any] = {
    **dict.fromkeys(_CELLS, _CELL),
    **dict.fromkeys(_SEQUENCES, _sequences),
    **dict.fromkeys(_PACKING, Whole()),
}
