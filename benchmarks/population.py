"""A train step over 64 small models under `vmap` and `jit`, against a loop over the 64."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle

import torch

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns

N, BATCH = 64, 32


def _network():
    hidden = (fl.Dense(64, 32, bias=False), fl.BatchNorm(32, fl.relu), fl.Dropout(0.1))
    return fl.Chain(*hidden, fl.Dense(32, 10))


def _loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def _step(model, state, key, number, x, y):
    grads = fl.gradient(_loss, model, x, y, key=key.fold_in(number))
    return fl.update(state, model, grads)


def _calls():
    """One step of all at once; and the models one after the other, by the same step compiled, and eager."""
    models = [_network() for _ in range(N)]
    rates = torch.logspace(-4, -2, N).tolist()
    states = [fl.setup(fl.Adam(lr), m) for lr, m in zip(rates, models, strict=True)]
    keys, number = fl.Key(0).split(N), torch.tensor(0)
    each = list(keys)
    x = torch.randn(BATCH, 64)
    targets = cycle(torch.randint(10, (1000, BATCH)))  # what is learnt by heart ends in denormal numbers

    at_once = fl.jit(fl.vmap(_step, in_dims=(0, 0, 0, None, None, None)), donate=(0, 1))
    population = [fl.stack(models), fl.stack(states)]

    def ours():
        population[:] = at_once(*population, keys, number, x, next(targets))

    def looped(step, models, states):
        members = list(zip(fl.tree.clone(models), fl.tree.clone(states), strict=True))

        def loop():
            y = next(targets)
            for i, (model, state) in enumerate(members):
                members[i] = step(model, state, each[i], number, x, y)

        return loop

    return ours, looped(fl.jit(_step, donate=(0, 1)), models, states), looped(_step, models, states)


def rows() -> Iterator[Row]:
    """One row a peer and number of threads."""
    for threads in at_threads(1, 2):
        ours, compiled, eager = in_turns(*_calls(), rounds=15, budget=10.0)
        what = f"vmap of a train step under jit, {N} models"
        yield Row(what, "a loop of the step, eager", threads, ours, eager, 1 / 15)
        yield Row(what, "a loop of the step under jit", threads, ours, compiled, None)
