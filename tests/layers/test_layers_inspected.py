"""Every layer of the table in `outputsize`, `summary` and notebooks; every one told a size, and `auto`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from layer_row import Row

import fluxlike as fl
from fluxlike.layers import auto as waiting

MODULES = sorted(path.stem for path in Path(__file__).parent.glob("rows_*.py"))
ROWS: list[Row] = [row for name in MODULES for row in importlib.import_module(name).ROWS]

every_layer = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
both_modes = pytest.mark.parametrize("mode", ["train", "test"])
A = fl.auto


@fl.functor
class Called:
    """A layer with the way its row calls it."""

    def __init__(self, row: Row, layer: Any) -> None:
        self.row, self.layer = row, layer

    def __call__(self, *inputs: Any) -> Any:
        return self.row.run(self.layer, *inputs)


@every_layer
@both_modes
def test_the_shape_of_the_output_is_that_of_a_call(row: Row, mode: Any) -> None:
    model, inputs = Called(row, row.layer()), row.inputs()
    with fl.mode(mode):
        found = fl.outputsize(model, *inputs)
        assert found == tuple(y.shape for y in model(*inputs))
        _, updates = fl.withupdates(lambda m: fl.outputsize(m, *inputs), model)
    assert not any(isinstance(x, fl.Assigned) for x in fl.fleaves(updates, leaves="all"))


@every_layer
def test_it_is_summed_up_and_shown(row: Row) -> None:
    layer = row.make()
    counts = row.text.splitlines()[-1].partition("# ")[2].removeprefix("Total: ")
    assert counts in layer._repr_html_()
    assert "(root)" in str(fl.summary(Called(row, fl.f64(layer)), *row.inputs()))


# By name: how the layer is made, and the inputs that tell what `auto` stands for.
SIZED: dict[str, tuple[Callable[[Any], Any], Callable[[], Any], list[tuple[int, ...]]]] = {
    "Dense": (lambda n: fl.Dense(n, 4, fl.relu), lambda: fl.Dense(6, 4, fl.relu), [(2, 6)]),
    "Dense, by name": (
        lambda n: fl.Dense(in_features=n, out_features=4),
        lambda: fl.Dense(6, 4),
        [(2, 5, 6)],
    ),
    "Scale": (lambda n: fl.Scale(n, fl.relu), lambda: fl.Scale(6, fl.relu), [(2, 6)]),
    "Bilinear": (lambda n: fl.Bilinear(n, 4), lambda: fl.Bilinear((6, 3), 4), [(2, 6), (2, 3)]),
    "Bilinear, of one": (lambda n: fl.Bilinear(n, 4), lambda: fl.Bilinear(6, 4), [(2, 6)]),
    "PReLU": (lambda n: fl.PReLU(n), lambda: fl.PReLU(6), [(2, 6)]),
    "Conv": (lambda n: fl.Conv((3,), n, 4, groups=2), lambda: fl.Conv((3,), 6, 4, groups=2), [(2, 6, 5)]),
    "CrossCor": (lambda n: fl.CrossCor((1, 1), n, 4), lambda: fl.Conv((1, 1), 6, 4), [(2, 6, 5, 5)]),
    "DepthwiseConv": (
        lambda n: fl.DepthwiseConv((3,), n, 12),
        lambda: fl.DepthwiseConv((3,), 6, 12),
        [(2, 6, 5)],
    ),
    "ConvTranspose": (
        lambda n: fl.ConvTranspose((3,), n, 4),
        lambda: fl.ConvTranspose((3,), 6, 4),
        [(2, 6, 5)],
    ),
    "BatchNorm": (lambda n: fl.BatchNorm(n), lambda: fl.BatchNorm(6), [(2, 6, 5)]),
    "GroupNorm": (lambda n: fl.GroupNorm(n, 3), lambda: fl.GroupNorm(6, 3), [(2, 6, 5)]),
    "InstanceNorm": (
        lambda n: fl.InstanceNorm(n, affine=True),
        lambda: fl.InstanceNorm(6, affine=True),
        [(2, 6, 5)],
    ),
    "LayerNorm": (lambda n: fl.LayerNorm(n), lambda: fl.LayerNorm(6), [(2, 5, 6)]),
    "RMSNorm": (lambda n: fl.RMSNorm(n), lambda: fl.RMSNorm(6), [(2, 5, 6)]),
    "WeightNorm": (lambda n: fl.WeightNorm(fl.Dense(n, 4)), lambda: fl.WeightNorm(fl.Dense(6, 4)), [(2, 6)]),
    "SpectralNorm": (
        lambda n: fl.SpectralNorm(fl.Conv((3,), n, 4)),
        lambda: fl.SpectralNorm(fl.Conv((3,), 6, 4)),
        [(2, 6, 5)],
    ),
    "MultiHeadAttention": (
        lambda n: fl.MultiHeadAttention(n, 2),
        lambda: fl.MultiHeadAttention(6, 2),
        [(2, 5, 6)],
    ),
    "MultiHeadAttention, of others": (
        lambda n: fl.MultiHeadAttention(n, 2, kdim=n, vdim=n),
        lambda: fl.MultiHeadAttention(6, 2, kdim=4, vdim=3),
        [(2, 5, 6), (2, 7, 4), (2, 7, 3)],
    ),
    "MultiHeadAttention, of another": (
        lambda n: fl.MultiHeadAttention(n, 2, kdim=n, vdim=n),
        lambda: fl.MultiHeadAttention(6, 2, kdim=4, vdim=4),
        [(2, 5, 6), (2, 7, 4)],
    ),
    "TransformerBlock": (
        lambda n: fl.TransformerBlock(n, 2, norm=fl.RMSNorm),
        lambda: fl.TransformerBlock(6, 2, norm=fl.RMSNorm),
        [(2, 5, 6)],
    ),
    "TransformerDecoderBlock": (
        lambda n: fl.TransformerDecoderBlock(n, 2),
        lambda: fl.TransformerDecoderBlock(6, 2),
        [(2, 5, 6), (2, 7, 6)],
    ),
    "RNN": (lambda n: fl.RNN(n, 4), lambda: fl.RNN(6, 4), [(2, 5, 6)]),
    "LSTM": (
        lambda n: fl.LSTM(n, 4, num_layers=2, bidirectional=True),
        lambda: fl.LSTM(6, 4, num_layers=2, bidirectional=True),
        [(2, 5, 6)],
    ),
    "GRU": (lambda n: fl.GRU(n, 4), lambda: fl.GRU(6, 4), [(2, 5, 6)]),
    "LSTMCell": (lambda n: fl.LSTMCell(n, 4), lambda: fl.LSTMCell(6, 4), [(2, 6)]),
    "Recurrence": (
        lambda n: fl.Recurrence(fl.GRUCell(n, 4)),
        lambda: fl.Recurrence(fl.GRUCell(6, 4)),
        [(2, 5, 6)],
    ),
    "Parallel": (
        lambda n: fl.Parallel(torch.add, fl.Dense(n, 4), fl.Dense(n, 4)),
        lambda: fl.Parallel(torch.add, fl.Dense(6, 4), fl.Dense(3, 4)),
        [(2, 6), (2, 3)],
    ),
    "Maxout": (
        lambda n: fl.Maxout(lambda: fl.Dense(n, 4), 3),
        lambda: fl.Maxout(lambda: fl.Dense(6, 4), 3),
        [(2, 6)],
    ),
    "PairwiseFusion": (
        lambda n: fl.PairwiseFusion(torch.add, fl.Dense(n, 6), fl.Dense(n, 6)),
        lambda: fl.PairwiseFusion(torch.add, fl.Dense(6, 6), fl.Dense(6, 6)),
        [(2, 6), (2, 6)],
    ),
    "SkipConnection": (
        lambda n: fl.SkipConnection(fl.Dense(n, 6), torch.add),
        lambda: fl.SkipConnection(fl.Dense(6, 6), torch.add),
        [(2, 6)],
    ),
}


@pytest.mark.parametrize("name", SIZED)
def test_auto_is_the_size_of_the_input(name: str) -> None:
    make, written, inputs = SIZED[name]
    with fl.seeded(fl.Key(1)):
        sized = fl.autosize(make(A), *inputs)
    with fl.seeded(fl.Key(1)):
        expected = written()
    assert type(sized) is type(expected)
    assert repr(sized) == repr(expected)
    assert all(torch.equal(a, b) for a, b in zip(fl.fleaves(sized), fl.fleaves(expected), strict=True))


def layers_in(x: Any) -> set[type]:
    """The classes of a layer and of the layers inside it."""
    if isinstance(x, (tuple, list)):
        return set().union(*map(layers_in, x))
    return {type(x)}.union(*map(layers_in, vars(x).values())) if hasattr(x, "__dict__") else set()


def test_every_layer_that_takes_auto_is_sized_from_an_example_here() -> None:
    sized = set().union(*(layers_in(written()) for _, written, _ in SIZED.values()))
    missing = []
    for name in fl.__all__:
        kind = getattr(fl, name)
        if isinstance(kind, type) and kind.__module__.startswith("fluxlike.layers"):
            told = next((waiting._rules[base] for base in kind.__mro__ if base in waiting._rules), {})
            if any(rule is not None for rule in told.values()):
                missing += [] if kind in sized else [name]
    assert missing == []


TELLING = {
    "in_features", "in_channels", "num_features", "num_channels", "num_parameters", "normalized_shape",
    "embed_dim", "kdim", "vdim", "input_size", "num_embeddings", "embedding_dim",
}  # fmt: skip


def test_every_layer_that_is_told_the_size_of_its_input_takes_auto() -> None:
    forgotten = []
    for name in fl.__all__:
        kind = getattr(fl, name)
        if (
            isinstance(kind, type)
            and kind.__module__.startswith("fluxlike.layers")
            and TELLING & set(inspect.signature(kind).parameters)
        ):
            declared = any(base in waiting._rules for base in kind.__mro__)
            forgotten += [] if declared else [name]
    assert forgotten == []
