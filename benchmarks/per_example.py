"""The gradient of every example of a batch of 128, against a loop over batches of one."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns

N = 128


def _cases():
    """By name a model, and the shape of one example."""
    yield "MLP", fl.Chain(fl.Dense(64, 128, fl.relu), fl.Dense(128, 10)), (64,)
    convs = (fl.Conv((3, 3), 1, 8, fl.relu), fl.MaxPool((2, 2)), fl.Conv((3, 3), 8, 16, fl.relu))
    yield "CNN", fl.Chain(*convs, fl.MaxPool((2, 2)), fl.flatten, fl.Dense(64, 10)), (1, 14, 14)


def _calls(model, shape):
    """All at once, by a loop of ours, and by a loop of ``loss.backward()`` over the same network."""
    x, y = torch.randn(N, *shape), torch.randint(10, (N,))

    def loss(m, x, y):
        return fl.losses.logitcrossentropy(m(x), y)

    def ours():
        return fl.per_example_gradient(loss, model, x, y)

    def loop():
        return [fl.gradient(loss, model, x[i : i + 1], y[i : i + 1]) for i in range(N)]

    leaf = fl.fmap(lambda w: w.clone().requires_grad_(), model)
    params = fl.trainables(leaf)

    def backward():
        return [torch.autograd.grad(loss(leaf, x[i : i + 1], y[i : i + 1]), params) for i in range(N)]

    return ours, loop, backward


def rows() -> Iterator[Row]:
    """One row a model, peer and number of threads."""
    for threads in at_threads(1, 2):
        for name, model, shape in _cases():
            ours, loop, backward = in_turns(*_calls(model, shape), rounds=9, budget=6.0)
            what = f"per-example gradients, batch {N}, {name}"
            yield Row(what, "a loop of gradient", threads, ours, loop, 1 / 10)
            yield Row(what, "a loop of torch.autograd.grad", threads, ours, backward, 1 / 10)
