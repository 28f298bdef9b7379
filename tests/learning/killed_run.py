"""A run that a test kills: ``python killed_run.py FOLDER eager|jit EPOCHS``. It prints a digest of its end.

Each step waits for a byte of the standard input, or its end. With a fourth argument, N, it waits in a save,
when it has called ``fsync`` N times, to be killed; it says so before.

Whatever may be random is: the order, a transform that draws from torch, numpy and Python, dropout, and a
callback.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

import fluxlike as fl


@dataclass
class Noise(fl.Callback):
    """Draws at every step from all generators, and remembers; then waits."""

    wait: Callable[[], object]

    def init(self):
        return {"seen": []}

    def step_end(self, run):
        seen = [random.random(), np.random.rand(), torch.rand(()).item()]
        run.memory["seen"].append(seen)
        self.wait()


def noisy(batch):
    x, y = batch
    scale = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
    return x * scale + 0.01 * torch.randn_like(x), y


def learner(folder, jit, wait=lambda: None):
    torch.manual_seed(0)
    x = torch.randn(240, 6)
    y = (x.sum(1) > 0).long()
    model = fl.Chain(
        fl.Dense(6, 32, fl.relu),
        fl.BatchNorm(32),
        fl.Dropout(0.2),
        fl.Dense(32, 32, fl.tanh),
        fl.Dense(32, 2),
    )
    data = (
        fl.DataLoader((x, y), batch_size=16, shuffle=True, transform=noisy),
        fl.DataLoader((x, y), batch_size=80),
    )
    rule = fl.EMA(fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.AdamW(1e-2)), 0.9)
    callbacks = [
        Noise(wait),
        fl.callbacks.Scheduler(lr=fl.schedules.OneCycle(90, 1e-2)),
        fl.callbacks.EarlyStopping(patience=50),
        fl.callbacks.Checkpointer(folder, every=2, keep=2, by="loss"),
    ]
    return fl.Learner(
        model, data, rule, fl.losses.logitcrossentropy, metrics=[fl.metrics.accuracy], callbacks=callbacks,
        progress=False, jit=jit,
    )  # fmt: skip


def digest(learner):
    """Of all that a run gives, but for seconds."""
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in learner.history.epochs]
    parts = [
        [x.numpy().tobytes() for x in fl.fleaves((learner.model, learner.state))],
        rows,
        [*learner.history.steps],
    ]
    memory = {
        name: value
        for name, value in learner.memory.items()
        if name in ("Noise", "EarlyStopping", "Scheduler")
    }
    text = repr((parts, memory, learner.step, learner.epoch))
    return hashlib.sha256(text.encode()).hexdigest()


def hold_in_a_save(calls):
    fsync = os.fsync

    def held(file):
        nonlocal calls
        if calls == 0:
            print("in a save", flush=True)
            time.sleep(600)
        calls -= 1
        fsync(file)

    os.fsync = held


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kind, epochs, *calls = sys.argv[1:]
    if calls:
        hold_in_a_save(*map(int, calls))
    begun = learner(folder, kind == "jit", lambda: os.read(0, 1))
    print(digest(fl.fit(begun, int(epochs), resume=True)))
