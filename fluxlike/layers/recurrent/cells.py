"""RNNCell, LSTMCell and GRUCell: one step of a recurrence, with torch's tensors, gates and formulas."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.activations import tanh
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Activation
from fluxlike.layers.checks import explain_mixture, require_activation, require_features
from fluxlike.layers.printing import activation_text
from fluxlike.layers.recurrent import fused
from fluxlike.layers.recurrent.autocast import settled
from fluxlike.random import uniform
from fluxlike.trees.functor import functor

__all__ = ["Cell", "GRUCell", "LSTMCell", "RNNCell"]

_TENSORS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")

#: Of one step and of a sequence.
Kernels = tuple[Callable[..., Any], Callable[..., Any]]

_OF_ACTIVATION: list[tuple[Any, Kernels]] = [
    (torch.tanh, (torch.rnn_tanh_cell, torch.rnn_tanh)),
    (F.tanh, (torch.rnn_tanh_cell, torch.rnn_tanh)),
    (torch.relu, (torch.rnn_relu_cell, torch.rnn_relu)),
    (F.relu, (torch.rnn_relu_cell, torch.rnn_relu)),
]


class Cell:
    """What the three cells share.

    A step is in two parts, `project` of the input alone, which can be one product for all steps of a
    sequence, and `step` of what that gave and of the state.
    """

    gates: ClassVar[int]
    states: ClassVar[int] = 1
    torchs: ClassVar[Kernels]

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(self, input_size: int, hidden_size: int, bias: bool) -> None:
        require_at_least_one(type(self).__name__, input_size=input_size, hidden_size=hidden_size)
        bound, rows = hidden_size**-0.5, self.gates * hidden_size
        self.weight_ih = uniform((rows, input_size), -bound, bound)
        self.weight_hh = uniform((rows, hidden_size), -bound, bound)
        self.bias_ih = uniform((rows,), -bound, bound) if bias else None
        self.bias_hh = uniform((rows,), -bound, bound) if bias else None

    @property
    def tensors(self) -> list[Tensor]:
        """The weights, and the biases where there are any, as torch's kernels take them."""
        found = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return [t for t in found if t is not None]

    @property
    def kernels(self) -> Kernels | None:
        """torch's kernels of one step and of a sequence, None where none takes these tensors."""
        return self.torchs if (self.bias_ih is None) == (self.bias_hh is None) else None

    def initial_state(self, x: Tensor, /) -> Any:
        """Zeros for a batch of inputs (N, input_size)."""
        h = x.new_zeros(x.shape[0], self.weight_hh.shape[1])
        return h if self.states == 1 else (h,) * self.states

    def project(self, x: Tensor, /) -> Tensor:
        """What inputs (…, input_size) add to the gates, (…, gates·hidden_size)."""
        biases = [b for b in (self.bias_ih, self.bias_hh) if b is not None]
        return F.linear(x, self.weight_ih, sum(biases[1:], biases[0]) if biases else None)

    def step(self, gates: Tensor, state: Any, /) -> tuple[Tensor, Any]:
        """The output and the next state, of what `project` gave for one step."""
        raise NotImplementedError

    def __call__(self, x: Tensor, state: Any = None, /) -> tuple[Tensor, Any]:
        name, n = type(self).__name__, self.weight_ih.shape[1]
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != n:
            require_features(name, x, 1, n, f"(N, {n})", (2,))
        state = self.initial_state(x) if state is None else state
        require_state(name, state, self.states, (x.shape[0], self.weight_hh.shape[1]))
        kernels = self.kernels
        try:
            if kernels is None or not fused.serves():
                y, new = self.step(self.project(x), state)
            else:
                new = kernels[0](x, state, *self.tensors)
                y = as_tuple(new)[0]
        except RuntimeError as error:
            for tensor in (x, *as_tuple(state)):
                explain_mixture(name, self.weight_ih, tensor, error)
            raise
        y, after = settled(y, as_tuple(new), as_tuple(state))
        return y, after if self.states > 1 else after[0]

    def extra_repr(self) -> str:
        return (
            f"{self.weight_ih.shape[1]}, {self.weight_hh.shape[1]}"
            + activation_text(getattr(self, "activation", tanh), tanh)
            + (", bias=False" if self.bias_ih is None else "")
        )


@autosized(input_size=-1)
@functor(children=(*_TENSORS, "activation"))
class RNNCell(Cell):
    """One step of a plain recurrence (Elman 1990, doi 10.1207/s15516709cog1402_1).

    ``h ← activation(W_ih·x + b_ih + W_hh·h + b_hh)``.

    Args:
        input_size: length of the last axis of the input.
        hidden_size: length of the last axis of the state.
        activation: any callable. (default: tanh)
        bias: whether to add biases. (default: True)

    Attributes:
        weight_ih: (hidden_size, input_size), uniform in ±1/√hidden_size as all four, as in torch.
        weight_hh: (hidden_size, hidden_size).
        bias_ih: (hidden_size,) or None.
        bias_hh: (hidden_size,) or None.
        activation: the activation.

    A call ``y, state = cell(x, state)`` takes inputs (N, input_size) and a state (N, hidden_size), zeros
    where none is given. The output is the new state.

    Raises:
        ValueError: from a call: an input or a state of another shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> cell = fl.RNNCell(3, 4, fl.relu)
        >>> cell
        RNNCell(3, 4, relu)  # 36 parameters
        >>> y, h = cell(torch.ones(2, 3))
        >>> y, h = cell(torch.ones(2, 3), h)
        >>> h.shape
        torch.Size([2, 4])
    """

    gates = 1
    torchs = torch.rnn_tanh_cell, torch.rnn_tanh

    def __init__(
        self, input_size: int, hidden_size: int, activation: Activation = tanh, *, bias: bool = True
    ) -> None:
        require_activation("RNNCell", activation)
        super().__init__(input_size, hidden_size, bias)
        self.activation = activation

    @property
    def kernels(self) -> Kernels | None:
        if super().kernels is None:
            return None
        return next((kernels for known, kernels in _OF_ACTIVATION if known is self.activation), None)

    def step(self, gates: Tensor, h: Tensor, /) -> tuple[Tensor, Tensor]:
        h = self.activation(gates + F.linear(h, self.weight_hh)).to(h.dtype)
        return h, h


@autosized(input_size=-1)
@functor(children=_TENSORS)
class LSTMCell(Cell):
    """One step of a long short-term memory (Hochreiter & Schmidhuber 1997, doi 10.1162/neco.1997.9.8.1735).

    The gates i, f, g, o are the four parts of ``W_ih·x + b_ih + W_hh·h + b_hh``, in this order, and
    ``c ← σ(f)·c + σ(i)·tanh(g)``, ``h ← σ(o)·tanh(c)``.

    Args:
        input_size: length of the last axis of the input.
        hidden_size: length of the last axis of the state.
        bias: whether to add biases. (default: True)

    Attributes:
        weight_ih: (4·hidden_size, input_size), uniform in ±1/√hidden_size as all four, as in torch.
        weight_hh: (4·hidden_size, hidden_size).
        bias_ih: (4·hidden_size,) or None.
        bias_hh: (4·hidden_size,) or None.

    A call ``y, (h, c) = cell(x, (h, c))`` takes inputs (N, input_size) and two tensors (N, hidden_size),
    zeros where none are given. The output is the new h.

    Raises:
        ValueError: from a call: an input or a state of another shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> cell = fl.LSTMCell(3, 4)
        >>> cell
        LSTMCell(3, 4)  # 144 parameters
        >>> y, (h, c) = cell(torch.ones(2, 3))
        >>> y.shape, h.shape, c.shape
        (torch.Size([2, 4]), torch.Size([2, 4]), torch.Size([2, 4]))
    """

    gates = 4
    states = 2
    torchs = torch.lstm_cell, torch.lstm

    def __init__(self, input_size: int, hidden_size: int, *, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)

    def step(self, gates: Tensor, state: tuple[Tensor, Tensor], /) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        i, f, g, o = (gates + F.linear(h, self.weight_hh)).chunk(4, -1)
        c = (f.sigmoid() * c + i.sigmoid() * g.tanh()).to(c.dtype)
        h = (o.sigmoid() * c.tanh()).to(h.dtype)
        return h, (h, c)


@autosized(input_size=-1)
@functor(children=_TENSORS)
class GRUCell(Cell):
    """One step of a gated recurrent unit (Cho et al. 2014, arXiv 1406.1078).

    The gates are r, z, n, in this order, as in torch and cuDNN: ``r = σ(W_ir·x + b_ir + W_hr·h + b_hr)``, z
    likewise, ``n = tanh(W_in·x + b_in + r·(W_hn·h + b_hn))``, and ``h ← (1 - z)·n + z·h``.

    Args:
        input_size: length of the last axis of the input.
        hidden_size: length of the last axis of the state.
        bias: whether to add biases. (default: True)

    Attributes:
        weight_ih: (3·hidden_size, input_size), uniform in ±1/√hidden_size as all four, as in torch.
        weight_hh: (3·hidden_size, hidden_size).
        bias_ih: (3·hidden_size,) or None.
        bias_hh: (3·hidden_size,) or None.

    A call ``y, state = cell(x, state)`` takes inputs (N, input_size) and a state (N, hidden_size), zeros
    where none is given. The output is the new state.

    Raises:
        ValueError: from a call: an input or a state of another shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> cell = fl.GRUCell(3, 4, bias=False)
        >>> cell
        GRUCell(3, 4, bias=False)  # 84 parameters
        >>> y, h = cell(torch.ones(2, 3))
        >>> h.shape
        torch.Size([2, 4])
    """

    gates = 3
    torchs = torch.gru_cell, torch.gru

    def __init__(self, input_size: int, hidden_size: int, *, bias: bool = True) -> None:
        super().__init__(input_size, hidden_size, bias)

    def project(self, x: Tensor, /) -> Tensor:
        return F.linear(x, self.weight_ih, self.bias_ih)  # b_hn stands inside of r·(…)

    def step(self, gates: Tensor, h: Tensor, /) -> tuple[Tensor, Tensor]:
        r, z, n = gates.chunk(3, -1)
        of_r, of_z, of_n = F.linear(h, self.weight_hh, self.bias_hh).chunk(3, -1)
        r, z = (r + of_r).sigmoid(), (z + of_z).sigmoid()
        n = (n + r * of_n).tanh()
        h = ((h - n) * z + n).to(h.dtype)
        return h, h


def require_at_least_one(name: str, **sizes: Any) -> None:
    """Refuse sizes that are no whole numbers from 1 on.

    Raises:
        TypeError: no whole number.
        ValueError: below 1.
    """
    for size, n in sizes.items():
        if not isinstance(n, Integral) or n < 1:
            kind = ValueError if isinstance(n, Integral) else TypeError
            raise kind(f"{name}: {size}={n!r}; write a whole number, at least 1")


def as_tuple(state: Any) -> tuple[Tensor, ...]:
    """The tensors of a state."""
    return state if isinstance(state, tuple) else (state,)


def require_state(name: str, state: Any, count: int, shape: tuple[int, ...]) -> None:
    """Refuse a state that is not of so many tensors of a shape.

    Raises:
        TypeError: no tensor, or no tuple of two where there are two.
        ValueError: another shape.
    """
    wanted = "a tensor" if count == 1 else "a tuple (h, c) of two tensors"
    parts = as_tuple(state)
    if len(parts) != count or isinstance(state, tuple) != (count > 1):
        found = f"a tuple of {len(parts)}" if isinstance(state, tuple) else type(state).__name__
        raise TypeError(f"{name} takes {wanted} as its state, found {found}")
    for part in parts:
        if not isinstance(part, Tensor):
            raise TypeError(f"{name} takes {wanted} as its state, found {type(part).__name__} in it")
        if part.shape != shape:
            hint = ""
            if len(shape) == 3 and tuple(part.shape) == (shape[1], shape[0], shape[2]):
                hint = "; the batch comes first here, write state.transpose(0, 1)"
            raise ValueError(
                f"{name} takes a state of shape {shape} for this input, found {tuple(part.shape)}{hint}"
            )
