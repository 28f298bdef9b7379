"""Layers, forward and gradient, against the same in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns

Call = Callable[[], object]


def rows() -> Iterator[Row]:
    """Two rows a layer: one forward pass, and one forward and backward pass."""
    cases = [
        ("Dense(1000, 100, tanh), batch 128", *_dense()),
        ("LSTM(64, 64), 128 steps, batch 32", *_recurrent(fl.LSTM, nn.LSTM)),
        ("GRU(64, 64), 128 steps, batch 32", *_recurrent(fl.GRU, nn.GRU)),
        ("RNN(64, 64), 128 steps, batch 32", *_recurrent(fl.RNN, nn.RNN)),
        ("MultiHeadAttention(256, 8), 512 tokens", *_attention()),
    ]
    for threads in at_threads(1, 2):
        for name, layer, module, x in cases:
            for what, pair in (("forward", _forward), ("gradient", _gradient)):
                ours, theirs = in_turns(*pair(layer, module, x), rounds=31, budget=6.0)
                yield Row(f"{name}, {what}", "torch.nn", threads, ours, theirs, 1.05)


def _dense() -> tuple[fl.Dense, nn.Module, Tensor]:
    layer, linear = fl.Dense(1000, 100, fl.tanh), nn.Linear(1000, 100)
    _share(layer, linear)
    return layer, nn.Sequential(linear, nn.Tanh()), torch.randn(128, 1000)


def _recurrent(ours: Callable[..., fl.LSTM], theirs: type[nn.Module]):
    layer, module = ours(64, 64), theirs(64, 64, batch_first=True)
    _share(layer, module)
    return layer, _First(module), torch.randn(32, 128, 64)


def _attention():
    layer, module = fl.MultiHeadAttention(256, 8), nn.MultiheadAttention(256, 8, batch_first=True)
    _share(layer, module)
    return layer, _SelfAttention(module), torch.randn(4, 512, 256)


def _share(layer: object, module: nn.Module) -> None:
    """Give torch's module our values."""
    with torch.no_grad():
        for mine, other in zip(fl.trainables(layer), module.parameters(), strict=True):
            other.copy_(mine)


class _First(nn.Module):
    """The first of what a module returns."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x)[0]


class _SelfAttention(_First):
    def forward(self, x: Tensor) -> Tensor:
        return self.module(x, x, x, need_weights=False)[0]


def _forward(layer: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> tuple[Call, Call]:
    module.eval()

    def theirs() -> Tensor:
        with torch.no_grad():
            return module(x)

    return lambda: layer(x), theirs


def _gradient(layer: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> tuple[Call, Call]:
    module.train()
    grads = None

    def ours() -> None:
        # As in a training loop: the last gradients live until the next are there, as .grad does.
        nonlocal grads
        grads = fl.gradient(lambda m: m(x).sum(), layer)

    def theirs() -> None:
        module.zero_grad()
        module(x).sum().backward()

    return ours, theirs
