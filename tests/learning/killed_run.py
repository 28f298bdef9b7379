"""A run that a test kills: ``python killed_run.py FOLDER eager|jit EPOCHS``. It prints a digest of its end.

Whatever may be random is: the order, a transform that draws from torch, numpy and Python, dropout, and a
callback.
"""

from __future__ import annotations

import hashlib
import random
import sys
import time

import numpy as np
import torch

import fluxlike as fl


class Noise(fl.Callback):
    """Draws at every step from all generators, and remembers."""

    def init(self):
        return {"seen": []}

    def step_end(self, run):
        seen = [random.random(), np.random.rand(), torch.rand(()).item()]
        run.memory["seen"].append(seen)
        time.sleep(0.002)  # so that a kill falls into a step as likely as into a save


def noisy(batch):
    x, y = batch
    scale = 1 + 0.1 * random.random() + 0.1 * np.random.rand()
    return x * scale + 0.01 * torch.randn_like(x), y


def learner(folder, jit):
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
        Noise(),
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kind, epochs = sys.argv[1], sys.argv[2], int(sys.argv[3])
    print(digest(fl.fit(learner(folder, kind == "jit"), epochs, resume=True)))
