"""Rows of the table of layers: recurrent cells and layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from layer_row import Row, floats, together
from torch import Tensor, nn
from torch.nn.functional import softsign
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fluxlike as fl


def small(layer: Any) -> Any:
    """Tensors for which no gate is shut."""
    return fl.fmap(lambda t: torch.rand(t.shape, dtype=torch.float64) - 0.5, layer)


def lengths(*values: int) -> Callable[[], Tensor]:
    return lambda: torch.tensor(values)


def both(y: Tensor, state: Any) -> tuple[Tensor, ...]:
    """The output and every tensor of the state."""
    return (y, *state) if isinstance(state, tuple) else (y, state)


def call_cell(cell: Any, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    return both(*cell(x, *([state] if len(state) > 1 else state)))


def call_torchs_cell(cell: nn.Module, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    new = cell(x, state if len(state) > 1 else state[0] if state else None)
    return both(new[0] if isinstance(new, tuple) else new, new)


def call_with_state(layer: Any, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    return both(*layer(x, state if len(state) > 1 else state[0]))


def call_torchs_with_state(layer: nn.Module, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    first = tuple(s.transpose(0, 1).contiguous() for s in state)
    y, *after = both(*layer(x, first if len(first) > 1 else first[0]))
    return (y, *(s.transpose(0, 1) for s in after))


def call_torchs(layer: nn.Module, x: Tensor) -> Tensor:
    return layer(x)[0]


def call_with_lengths(layer: Any, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    return both(*layer(x, layer.initial_state(x), lengths=lengths))


def call_torchs_with_lengths(layer: nn.Module, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
    packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    y, *after = both(*layer(packed))
    padded, _ = pad_packed_sequence(y, batch_first=True, total_length=x.shape[1])
    return (padded, *(s.transpose(0, 1) for s in after))


class Elman(nn.Module):
    """A plain recurrence with softsign, which torch has no kernel for."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input = nn.Linear(inputs, hidden, bias=False)
        self.hidden = nn.Linear(hidden, hidden, bias=False)
        self.biases = nn.ParameterList([torch.zeros(hidden), torch.zeros(hidden)])

    def forward(self, x: Tensor) -> Tensor:
        h, outputs = x.new_zeros(len(x), self.hidden.out_features), []
        for step in x.unbind(1):
            h = softsign(self.input(step) + self.biases[0] + self.hidden(h) + self.biases[1])
            outputs.append(h)
        return torch.stack(outputs, 1)


ROWS = [
    Row(
        "RNNCell with relu",
        lambda: fl.RNNCell(3, 4, fl.relu),
        lambda: nn.RNNCell(3, 4, nonlinearity="relu"),
        together(floats(5, 3), floats(5, 4)),
        "RNNCell(3, 4, relu)  # 36 parameters",
        refused=((5, 4), (3,), (5, 2, 3)),
        wanted=r"RNNCell takes the shape \(N, 3\), found {}",
        call=call_cell,
        call_twin=call_torchs_cell,
        tensors=small,
    ),
    Row(
        "LSTMCell",
        lambda: fl.LSTMCell(3, 4),
        lambda: nn.LSTMCell(3, 4),
        together(floats(5, 3), floats(5, 4), floats(5, 4)),
        "LSTMCell(3, 4)  # 144 parameters",
        refused=((5, 4),),
        wanted=r"LSTMCell takes the shape \(N, 3\), found {}",
        call=call_cell,
        call_twin=call_torchs_cell,
        tensors=small,
    ),
    Row(
        "GRUCell without bias or state",
        lambda: fl.GRUCell(3, 4, bias=False),
        lambda: nn.GRUCell(3, 4, bias=False),
        floats(5, 3),
        "GRUCell(3, 4, bias=False)  # 84 parameters",
        refused=((5, 4),),
        wanted=r"GRUCell takes the shape \(N, 3\), found {}",
        call=call_cell,
        call_twin=call_torchs_cell,
        tensors=small,
    ),
    Row(
        "RNN",
        lambda: fl.RNN(3, 4),
        lambda: nn.RNN(3, 4, batch_first=True),
        floats(5, 6, 3),
        "RNN(3, 4)  # 36 parameters",
        refused=((5, 6, 4), (6, 3), (2, 5, 6, 3)),
        wanted=r"RNN takes the shape \(N, L, 3\), found {}",
        call_twin=call_torchs,
        tensors=small,
    ),
    Row(
        "RNN of an activation without a kernel",
        lambda: fl.RNN(3, 4, softsign),
        lambda: Elman(3, 4),
        floats(5, 6, 3),
        "RNN(3, 4, softsign)  # 36 parameters",
        tensors=small,
    ),
    Row(
        "LSTM of two layers in both directions with a state",
        lambda: fl.LSTM(3, 2, num_layers=2, bidirectional=True),
        lambda: nn.LSTM(3, 2, 2, bidirectional=True, batch_first=True),
        together(floats(5, 4, 3), floats(5, 4, 2), floats(5, 4, 2)),
        "LSTM(3, 2, num_layers=2, bidirectional=True)  # 240 parameters",
        refused=((5, 6, 4),),
        wanted=r"LSTM takes the shape \(N, L, 3\), found {}",
        call=call_with_state,
        call_twin=call_torchs_with_state,
        tensors=small,
    ),
    Row(
        "GRU of two layers with dropout, without bias",
        lambda: fl.GRU(3, 4, num_layers=2, dropout=0.3, bias=False),
        lambda: nn.GRU(3, 4, 2, dropout=0.3, bias=False, batch_first=True),
        floats(5, 6, 3),
        "GRU(3, 4, num_layers=2, dropout=0.3, bias=False)  # 180 parameters",
        refused=((5, 6, 4),),
        wanted=r"GRU takes the shape \(N, L, 3\), found {}",
        draws=True,
        call_twin=call_torchs,
        tensors=small,
    ),
    Row(
        "LSTM of sequences of several lengths",
        lambda: fl.LSTM(3, 2, bidirectional=True),
        lambda: nn.LSTM(3, 2, bidirectional=True, batch_first=True),
        together(floats(4, 5, 3), lengths(2, 5, 1, 4)),
        "LSTM(3, 2, bidirectional=True)  # 112 parameters",
        call=call_with_lengths,
        call_twin=call_torchs_with_lengths,
        tensors=small,
    ),
    Row(
        "Recurrence of a GRUCell",
        lambda: fl.Recurrence(fl.GRUCell(3, 4)),
        lambda: nn.GRU(3, 4, batch_first=True),
        floats(5, 6, 3),
        "Recurrence(\n"
        "  cell=GRUCell(3, 4),  # 108 parameters\n"
        ")                      # Total: 4 tensors, 108 parameters, 432 bytes",
        refused=((5, 6, 4),),
        wanted=r"\.cell: .*GRUCell takes the shape \(N, 3\), found",
        call_twin=call_torchs,
        tensors=small,
    ),
]
