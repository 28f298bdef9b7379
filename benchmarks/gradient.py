"""`gradient`, eager, against ``loss.backward()`` of the same model, for steps of three sizes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns


def _pair(sizes: list[int], batch: int):
    """The same network as a tree and as a module, one training step of each."""
    layers = [fl.Dense(a, b, fl.relu) for a, b in pairwise(sizes)]
    model = fl.Chain(*layers)
    modules: list[torch.nn.Module] = []
    for layer in layers:
        linear = torch.nn.Linear(layer.weight.shape[1], layer.weight.shape[0])
        with torch.no_grad():
            linear.weight.copy_(layer.weight)
            linear.bias.copy_(layer.bias)
        modules += [linear, torch.nn.ReLU()]
    net = torch.nn.Sequential(*modules)
    x, y = torch.randn(batch, sizes[0]), torch.randn(batch, sizes[-1])

    def loss(m, x, y):
        return torch.nn.functional.mse_loss(m(x), y)

    grads = None

    def ours():
        # As in a training loop: the last gradients live until the next are there, as .grad does.
        nonlocal grads
        grads = fl.gradient(loss, model, x, y)

    def theirs():
        net.zero_grad()
        loss(net, x, y).backward()

    return ours, theirs


def rows() -> Iterator[Row]:
    """One row a size and number of threads."""
    cases = [
        ("gradient, a step of 10 ms", [512, 1024, 1024, 1024, 512], 128, 1.02),
        ("gradient, a step of 1 ms", [128, 256, 256, 128], 128, 1.05),
        ("gradient, a step of 0.1 ms", [64, 128, 10], 64, 1.25),
    ]
    for threads in at_threads(1, 2):
        for name, sizes, batch, target in cases:
            ours, theirs = in_turns(*_pair(sizes, batch), rounds=31, budget=6.0)
            yield Row(name, "zero_grad and loss.backward()", threads, ours, theirs, target)
