"""How Flux, Flax and Keras keep the parameters of recurrent layers: gates, and one bias or two.

Sources: Flux.jl 0.16 (src/layers/recurrent.jl), Flax linen 0.12 (flax/linen/recurrent.py), Keras 3
(keras/src/layers/rnn), as read and run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.layers.recurrent.cells import Cell, GRUCell, LSTMCell, RNNCell
from fluxlike.layers.recurrent.layers import GRU, LSTM, RNN, Recurrent
from fluxlike.placement.foreign.parameters import parameter_rule
from fluxlike.placement.foreign.parts import Part, Values, same

__all__ = ()

# One cell: parts below `ours`, in the layer, of arrays below `theirs`.
PartsOfCell = Callable[[str, str], list[Part]]


def _of_cell(parts: PartsOfCell) -> Callable[[Any], Sequence[Part]]:
    return lambda _: parts("", "")


def _of_layer(parts: PartsOfCell, single: str) -> Callable[[Any], Sequence[Part]]:
    """The parts of a layer: of one cell under its name there, of several under directions or numbers."""

    def of(layer: Recurrent) -> list[Part]:
        n = len(layer.cells)
        directions = ["forward.", "backward."] if layer.bidirectional else [single if n == 1 else ""]
        found: list[Part] = []
        for i in range(n):
            number = f"{i // len(directions)}." if n > len(directions) else ""
            found += parts(f".cells[{i}]", number + directions[i % len(directions)])
        return found

    return of


def _bias(
    ours: str, theirs: tuple[str, ...], read: Callable[..., Values], write: Callable[..., Values]
) -> Part:
    """The two biases of a cell; one that it does not have is zero."""

    def filled(a: Tensor | None, b: Tensor | None) -> Values:
        known = b if a is None else a
        assert known is not None
        zero = torch.zeros_like(known)
        return write(zero if a is None else a, zero if b is None else b)

    return Part((f"{ours}.bias_ih", f"{ours}.bias_hh"), theirs, read, filled, ranks=(1, 1))


def _added(a: Tensor, b: Tensor) -> Values:
    return (a + b,)


def _alone(bias: Tensor) -> Values:
    return bias, torch.zeros_like(bias)


# Flux: gates i, f, g, o and r, z, n as here, and one bias. In a GRU it is that of the input: the one of n
# at the state stands inside of what r multiplies, and Flux has none there.
def _flux(write: Callable[[Tensor, Tensor], Values]) -> PartsOfCell:
    def parts(ours: str, theirs: str) -> list[Part]:
        return [
            same(f"{ours}.weight_ih", _either(theirs, "Wi"), rank=2),
            same(f"{ours}.weight_hh", _either(theirs, "Wh"), rank=2),
            _bias(ours, ("|".join([_either(theirs, "bias"), _either(theirs, "b")]),), _alone, write),
        ]

    return parts


def _either(prefix: str, name: str) -> str:
    return f"{prefix}{name}|{name}" if prefix == "cell." else f"{prefix}{name}"


def _flux_gru_bias(a: Tensor, b: Tensor) -> Values:
    n = b.chunk(3)[2]
    if not n.is_meta and bool(n.any()):
        raise ValueError(
            "Flux's GRU has one bias, and the third part of bias_hh, which is multiplied by r, is not zero; "
            "set it to zero and train on, or keep the model here"
        )
    return _added(a, b)


# Keras: gates next to each other, i, f, c, o, which is our order, and z, r, h, which is not. The LSTM has
# one bias, the GRU (reset_after=True, as by default) a row for each of its two products.
def _keras(bias: Callable[[str, str], Part], order: Callable[[Tensor], Tensor]) -> PartsOfCell:
    def kernel(ours: str, theirs: str) -> Part:
        return Part((ours,), (theirs,), lambda x: (order(x.mT),), lambda x: (order(x).mT,), ranks=(2,))

    def parts(ours: str, theirs: str) -> list[Part]:
        return [
            kernel(f"{ours}.weight_ih", f"{theirs}kernel"),
            kernel(f"{ours}.weight_hh", f"{theirs}recurrent_kernel"),
            bias(ours, f"{theirs}bias"),
        ]

    return parts


def _one_bias(ours: str, theirs: str) -> Part:
    return _bias(ours, (theirs,), _alone, _added)


def _two_biases(ours: str, theirs: str) -> Part:
    def read(bias: Tensor) -> Values:
        if bias.ndim != 2:
            raise ValueError(
                f"a bias of the shape {tuple(bias.shape)} is a GRU's with reset_after=False, which "
                "multiplies by r before the product; ours is Keras' default, reset_after=True, with a bias "
                "(2, …)"
            )
        return _zr_swapped(bias[0]), _zr_swapped(bias[1])

    return _bias(ours, (theirs,), read, lambda a, b: (torch.stack([_zr_swapped(a), _zr_swapped(b)]),))


def _zr_swapped(x: Tensor) -> Tensor:
    z, r, n = x.chunk(3)
    return torch.cat([r, z, n])


def _kept(x: Tensor) -> Tensor:
    return x


def _keras_names(single: str) -> Callable[[Any], tuple[str, ...]]:
    return lambda layer: ("bidirectional",) if layer.bidirectional else (single,)


def _keras_directions(name: str) -> str:
    """``forward_lstm_1.lstm_cell.kernel`` as ``forward.kernel``."""
    return re.sub(r"(forward|backward)_\w+\.(\w+_cell\.)?", r"\1.", name)


# Flax: a Dense for each gate of the input, i*, and of the state, h*. An LSTM has its biases at the state,
# a GRU all at the input but for a second one of n.
def _flax(gates: Sequence[str], bias: Callable[[str, str], Part]) -> PartsOfCell:
    def kernel(ours: str, names: tuple[str, ...]) -> Part:
        def write(x: Tensor) -> Values:
            return tuple(gate.mT for gate in x.chunk(len(gates)))

        return Part((ours,), names, lambda *xs: (torch.cat([x.mT for x in xs]),), write, ranks=(2,))

    def parts(ours: str, theirs: str) -> list[Part]:
        return [
            kernel(f"{ours}.weight_ih", tuple(f"{theirs}i{gate}.kernel" for gate in gates)),
            kernel(f"{ours}.weight_hh", tuple(f"{theirs}h{gate}.kernel" for gate in gates)),
            bias(ours, theirs),
        ]

    return parts


def _flax_lstm_bias(ours: str, theirs: str) -> Part:
    def read(*gates: Tensor) -> Values:
        return _alone(torch.cat(gates))

    return _bias(ours, tuple(f"{theirs}h{g}.bias" for g in "ifgo"), read, lambda a, b: (a + b).chunk(4))


def _flax_gru_bias(ours: str, theirs: str) -> Part:
    def read(r: Tensor, z: Tensor, n: Tensor, inner: Tensor) -> Values:
        return torch.cat([r, z, n]), torch.cat([torch.zeros_like(r), torch.zeros_like(z), inner])

    def write(a: Tensor, b: Tensor) -> Values:
        (r, z, n), (at_r, at_z, inner) = a.chunk(3), b.chunk(3)
        return r + at_r, z + at_z, n, inner

    return _bias(ours, tuple(f"{theirs}{name}.bias" for name in ("ir", "iz", "in", "hn")), read, write)


def _flax_rnn_bias(ours: str, theirs: str) -> Part:
    return _one_bias(ours, f"{theirs}i.bias")


_FLUX = {RNNCell: _flux(_added), LSTMCell: _flux(_added), GRUCell: _flux(_flux_gru_bias)}
_KERAS = {
    RNNCell: _keras(_one_bias, _kept),
    LSTMCell: _keras(_one_bias, _kept),
    GRUCell: _keras(_two_biases, _zr_swapped),
}
_FLAX: dict[type[Cell], tuple[PartsOfCell, tuple[str, ...]]] = {
    RNNCell: (_flax([""], _flax_rnn_bias), ("SimpleCell",)),
    LSTMCell: (_flax("ifgo", _flax_lstm_bias), ("LSTMCell", "OptimizedLSTMCell")),
    GRUCell: (_flax("rzn", _flax_gru_bias), ("GRUCell",)),
}

for layer, cell, name in ((RNN, RNNCell, "simple_rnn"), (LSTM, LSTMCell, "lstm"), (GRU, GRUCell, "gru")):
    parameter_rule(cell, "flux", _of_cell(_FLUX[cell]))
    parameter_rule(layer, "flux", _of_layer(_FLUX[cell], "cell."))
    parameter_rule(cell, "keras", _of_cell(_KERAS[cell]), names=(f"{name}_cell", name))
    parameter_rule(
        layer,
        "keras",
        _of_layer(_KERAS[cell], ""),
        names=_keras_names(name),
        rename=_keras_directions,
    )
    # In Flax each cell has a name of its own, forward before backward.
    parts, names = _FLAX[cell]
    parameter_rule(cell, "flax", _of_cell(parts), names=(*names, "forward_rnn", "backward_rnn"))
