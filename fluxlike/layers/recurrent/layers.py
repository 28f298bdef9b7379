"""RNN, LSTM and GRU: whole sequences, layer by layer and in both directions."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxlike.layers.activations import tanh
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Activation
from fluxlike.layers.checks import explain_mixture, refuse_input, require_activation
from fluxlike.layers.dropout import dropout as drop
from fluxlike.layers.dropout import require_probability
from fluxlike.layers.lengths import require_lengths
from fluxlike.layers.recurrent.cells import (
    Cell,
    GRUCell,
    LSTMCell,
    RNNCell,
    as_tuple,
    require_at_least_one,
    require_state,
)
from fluxlike.layers.recurrent.recurrence import require_steps
from fluxlike.layers.recurrent.sequence import run
from fluxlike.scope.mode import training
from fluxlike.trees.functor import functor
from fluxlike.trees.paths import is_node

__all__ = ["GRU", "LSTM", "RNN"]


class Recurrent:
    """What the three layers share."""

    cell: ClassVar[type[Cell]]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bidirectional: bool,
        dropout: float,
        **of_cell: Any,
    ) -> None:
        name = type(self).__name__
        require_at_least_one(name, num_layers=num_layers)
        if not isinstance(bidirectional, bool):
            raise TypeError(f"{name}: bidirectional={bidirectional!r}; write True or False")
        require_probability(name, "dropout", dropout)
        if dropout and num_layers == 1:
            raise ValueError(
                f"{name}: dropout={dropout} acts between layers, and num_layers is 1; write "
                f"Chain({name}(…), Dropout({dropout})) for one after the layer"
            )
        directions = 1 + bidirectional
        sizes = [input_size, *[directions * hidden_size] * (num_layers - 1)]
        self.cells = tuple(
            self.cell(size, hidden_size, **of_cell) for size in sizes for _ in range(directions)
        )
        self.bidirectional, self.dropout = bidirectional, dropout

    def initial_state(self, x: Tensor, /) -> Any:
        """Zeros for a batch of inputs (N, L, input_size)."""
        h = x.new_zeros(self._state_shape(x))
        return h if self.cell.states == 1 else (h,) * self.cell.states

    def __call__(self, x: Tensor, state: Any = None, /, *, lengths: Tensor | None = None) -> Any:
        name, n = type(self).__name__, self.cells[0].weight_ih.shape[1]
        if not isinstance(x, Tensor) or x.ndim != 3 or x.shape[2] != n:
            alone = isinstance(x, Tensor) and x.ndim == 2 and x.shape[1] == n
            refuse_input(name, x, f"(N, L, {n})", "; for one sequence write x[None]" if alone else "")
        require_steps(name, x)
        given = state is not None
        if given:
            require_state(name, state, self.cell.states, self._state_shape(x))
        if lengths is not None:
            require_lengths(name, lengths, x.shape[0], 1, x.shape[1])
        before = as_tuple(state if given else self.initial_state(x))
        try:
            y, after = self._run(x, tuple(s.transpose(0, 1) for s in before), lengths)
        except RuntimeError as error:
            for tensor in (x, *before):
                explain_mixture(name, self.cells[0].weight_ih, tensor, error)
            raise
        if not given:
            return y
        new = tuple(s.transpose(0, 1) for s in after)
        return y, new if self.cell.states > 1 else new[0]

    def _run(
        self, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self.dropout or not training(self):
            return run(self.cells, x, state, lengths, self.bidirectional)
        directions, after = 1 + self.bidirectional, []
        for i in range(0, len(self.cells), directions):
            row = slice(i, i + directions)
            if i:
                x = drop(x.transpose(0, 1), self.dropout).transpose(0, 1)  # torch draws in this order
            x, new = run(self.cells[row], x, tuple(s[row] for s in state), lengths, self.bidirectional)
            after.append(new)
        return x, tuple(map(torch.cat, zip(*after, strict=True)))

    def _state_shape(self, x: Tensor) -> tuple[int, int, int]:
        return x.shape[0], len(self.cells), self.cells[0].weight_hh.shape[1]

    @property
    def arguments_say_all(self) -> bool:
        """Whether the cells need no lines in print: unless their activation is a layer with tensors."""
        return not any(is_node(getattr(cell, "activation", None)) for cell in self.cells)

    def extra_repr(self) -> str:
        cell, directions = self.cells[0], 1 + self.bidirectional
        layers = len(self.cells) // directions
        return (
            cell.extra_repr().removesuffix(", bias=False")
            + (f", num_layers={layers}" if layers > 1 else "")
            + (", bidirectional=True" if self.bidirectional else "")
            + (f", dropout={self.dropout}" if self.dropout else "")
            + (", bias=False" if cell.bias_ih is None else "")
        )


@autosized(input_size=-1)
@functor(children=("cells",))
class RNN(Recurrent):
    """Plain recurrent layers over sequences: `RNNCell` over time, by torch's kernels.

    Args:
        input_size: length of the last axis of the input.
        hidden_size: length of the last axis of the state.
        activation: any callable; torch has kernels for tanh and relu. (default: tanh)
        num_layers: how many layers there are; each reads the outputs of the one before. (default: 1)
        bidirectional: whether each layer also runs from the end to the start. (default: False)
        dropout: in train mode, the probability to zero an output between two layers. (default: 0)
        bias: whether to add biases. (default: True)

    Attributes:
        cells: a cell a layer and direction: forward and backward of layer 0, of layer 1, …
        bidirectional: whether there are two directions.
        dropout: the probability.

    Input: (N, L, input_size). ``rnn(x)`` gives the outputs of the last layer, (N, L, directions·hidden_size);
    ``rnn(x, state)`` a pair, the outputs and the last state. States are (N, layers·directions, hidden_size),
    in the order of the cells; ``rnn.initial_state(x)`` is zeros.

    With ``lengths=``, integers (N,), each sequence has a length of its own: outputs past it are zero, the
    last state is that at its end, and the backward direction starts there.

    Raises:
        ValueError: no layer, `dropout` outside [0, 1] or without a layer after it; from a call: an input or
            a state of another shape, an input without steps, lengths outside 1 to L.

    Example:
        >>> import torch, fluxlike as fl
        >>> rnn = fl.RNN(3, 4, fl.relu)
        >>> rnn(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 4])
        >>> rnn
        RNN(3, 4, relu)  # 36 parameters
    """

    cell = RNNCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        activation: Activation = tanh,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        require_activation("RNN", activation)
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional, dropout, activation=activation, bias=bias
        )


@autosized(input_size=-1)
@functor(children=("cells",))
class LSTM(Recurrent):
    """Long short-term memory over sequences: `LSTMCell` over time, by torch's kernels.

    Args:
        input_size: length of the last axis of the input.
        hidden_size: length of the last axis of the state.
        num_layers: how many layers there are; each reads the outputs of the one before. (default: 1)
        bidirectional: whether each layer also runs from the end to the start. (default: False)
        dropout: in train mode, the probability to zero an output between two layers. (default: 0)
        bias: whether to add biases. (default: True)

    Attributes:
        cells: a cell a layer and direction: forward and backward of layer 0, of layer 1, …
        bidirectional: whether there are two directions.
        dropout: the probability.

    Input: (N, L, input_size). ``lstm(x)`` gives the outputs of the last layer, (N, L,
    directions·hidden_size); ``lstm(x, (h, c))`` a pair, the outputs and the last (h, c). Both are
    (N, layers·directions, hidden_size), in the order of the cells; ``lstm.initial_state(x)`` is zeros.

    With ``lengths=``, integers (N,), each sequence has a length of its own: outputs past it are zero, the
    last state is that at its end, and the backward direction starts there.

    Raises:
        ValueError: no layer, `dropout` outside [0, 1] or without a layer after it; from a call: an input or
            a state of another shape, an input without steps, lengths outside 1 to L.

    Example:
        >>> import torch, fluxlike as fl
        >>> lstm = fl.LSTM(3, 4, num_layers=2)
        >>> x = torch.ones(2, 5, 3)
        >>> lstm(x).shape
        torch.Size([2, 5, 4])
        >>> y, (h, c) = lstm(x, lstm.initial_state(x))
        >>> y, (h, c) = lstm(x, (h, c))
        >>> h.shape
        torch.Size([2, 2, 4])
        >>> lstm(x, lengths=torch.tensor([5, 3]))[1, 3:].abs().max()
        tensor(0.)
    """

    cell = LSTMCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bidirectional, dropout, bias=bias)


@autosized(input_size=-1)
@functor(children=("cells",))
class GRU(Recurrent):
    """Gated recurrent units over sequences: `GRUCell` over time, by torch's kernels.

    Args:
        input_size: length of the last axis of the input.
        hidden_size: length of the last axis of the state.
        num_layers: how many layers there are; each reads the outputs of the one before. (default: 1)
        bidirectional: whether each layer also runs from the end to the start. (default: False)
        dropout: in train mode, the probability to zero an output between two layers. (default: 0)
        bias: whether to add biases. (default: True)

    Attributes:
        cells: a cell a layer and direction: forward and backward of layer 0, of layer 1, …
        bidirectional: whether there are two directions.
        dropout: the probability.

    Input: (N, L, input_size). ``gru(x)`` gives the outputs of the last layer, (N, L, directions·hidden_size);
    ``gru(x, state)`` a pair, the outputs and the last state. States are (N, layers·directions, hidden_size),
    in the order of the cells; ``gru.initial_state(x)`` is zeros.

    With ``lengths=``, integers (N,), each sequence has a length of its own: outputs past it are zero, the
    last state is that at its end, and the backward direction starts there.

    Raises:
        ValueError: no layer, `dropout` outside [0, 1] or without a layer after it; from a call: an input or
            a state of another shape, an input without steps, lengths outside 1 to L.

    Example:
        >>> import torch, fluxlike as fl
        >>> gru = fl.GRU(3, 4, bidirectional=True)
        >>> gru(torch.ones(2, 5, 3)).shape
        torch.Size([2, 5, 8])
        >>> gru
        GRU(3, 4, bidirectional=True)  # 216 parameters
    """

    cell = GRUCell

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, bidirectional, dropout, bias=bias)
