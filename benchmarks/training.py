"""`fit` with its default callbacks against the bare loop of two lines, on a step of about a millisecond."""

from __future__ import annotations

from collections.abc import Iterator

import torch

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns

STEPS = 300


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def step(model, state, x, y):
    grads = fl.gradient(loss, model, x, y)
    return fl.update(state, model, grads)


def network(width: int):
    return fl.Chain(fl.Dense(128, width, fl.relu), fl.Dense(width, width, fl.relu), fl.Dense(width, 10))


def comparison(name: str, batch: int, width: int, compiled: bool, threads: int) -> Row:
    torch.manual_seed(0)
    model, rule = network(width), fl.Adam(1e-4)
    batches = [(torch.randn(batch, 128), torch.randint(10, (batch,))) for _ in range(STEPS)]
    learner = fl.Learner(model, batches, rule, fl.losses.logitcrossentropy, jit=compiled)
    take = fl.jit(step, donate=("model", "state")) if compiled else step

    def bare() -> None:
        now = fl.tree.clone((model, fl.setup(rule, model)))
        for x, y in batches:
            now = take(*now, x, y)

    ours, theirs = in_turns(lambda: fl.fit(learner, 1), bare, budget=12.0, rounds=31)
    return Row(f"fit, {name}", "the bare loop", threads, ours / STEPS, theirs / STEPS, 1.03)


def rows() -> Iterator[Row]:
    for threads in at_threads(1, 2):
        yield comparison("eager, MLP", 96, 256, False, threads)
        yield comparison("jit, MLP", 256, 256, True, threads)
