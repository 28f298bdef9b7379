"""A run that a test interrupts: ``torchrun resumed_run.py KIND FOLDER HOW STEP``, or a call of `train`.

``KIND`` is ``steps``, a loop of one's own with `fluxlike.distributed.save`, or ``fit``, a Learner with a
Checkpointer. It goes on from the folder, and ends in the step as ``HOW`` says: ``kill``, by SIGKILL of rank 1
alone, or ``exit``, of every rank. Rank 0 notes the losses of all steps in ``losses.jsonl``.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import torch

import fluxlike as fl
from fluxlike import distributed as d

EPOCHS, SAVED_EVERY = 3, 3
TO_START, TO_SHUFFLE, TO_DROP = fl.Key(0).split(3)


def data(mesh):
    """Batches of 6 rows, which two and three ranks share, and a last one of 4, which three can't."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(28, 5, dtype=torch.float64, generator=generator)
    return fl.DataLoader((x, x.cos()[:, :2]), 6, shuffle=True, key=TO_SHUFFLE, device=mesh)


def network(mesh):
    with fl.seeded(TO_START):
        model = fl.Chain(
            fl.Dense(5, 7, bias=False), fl.BatchNorm(7, fl.tanh), fl.Dropout(0.3), fl.Dense(7, 2)
        )
    model = fl.f64(model)
    return model if mesh is None else fl.to_device(model, mesh, d.shard())


def end(how):
    if how == "exit":
        sys.exit(0)
    if how == "kill" and d.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def by_steps(folder, mesh, begun, note):
    """A loop of one's own."""
    model, loader = network(mesh), data(mesh)
    run = {"model": model, "state": fl.setup(fl.AdamW(1e-2), model), "step": 0}
    with contextlib.suppress(FileNotFoundError):
        run = d.load(folder / "checkpoint", like=run)
    model, state, step = run["model"], run["state"], run["step"]

    def loss(model, x, y):
        value = fl.losses.mse(model(x), y)
        begun(step)  # after the forward pass, so that the others wait in the backward pass
        return value

    while step < EPOCHS * len(loader):
        epoch, batch = divmod(step, len(loader))
        for x, y in loader.epoch(epoch, start=batch):
            value, grads = fl.withgradient(loss, model, x, y, key=TO_DROP.fold_in(step))
            model, state = fl.update(state, model, grads)
            note(step, value.item())
            step += 1
            if step % SAVED_EVERY == 0:
                d.save(folder / "checkpoint", {"model": model, "state": state, "step": step})
    return model


class Told(fl.Callback):
    def __init__(self, begun, note):
        self.begun, self.note = begun, note

    def step_begin(self, run):
        self.begun(run.step)

    def step_end(self, run):
        self.note(run.step - 1, float(run.loss))


def by_fit(folder, mesh, begun, note):
    """A Learner."""
    saving = fl.callbacks.Checkpointer(folder / "checkpoints", every=SAVED_EVERY, background=False)
    learner = fl.Learner(
        network(mesh), data(mesh), fl.AdamW(1e-2), fl.losses.mse, key=TO_DROP,
        callbacks=[Told(begun, note), saving], progress=False,
    )  # fmt: skip
    return fl.fit(learner, EPOCHS, resume=True).model


KINDS = {"steps": by_steps, "fit": by_fit}


def train(kind, folder, mesh=None, ending=("", 0)):
    """The model at the end of the run, in plain tensors."""
    how, at = ending

    def begun(step):
        if step == at:
            end(how)

    def note(step, loss):
        if d.rank() == 0:
            with (folder / "losses.jsonl").open("a") as file:
                file.write(json.dumps({"step": step, "loss": loss}) + "\n")

    folder.mkdir(exist_ok=True)
    return fl.cpu(KINDS[kind](folder, mesh, begun, note))


def main(kind, folder, how, step):
    d.init("cpu")
    torch.set_num_threads(1)
    train(kind, Path(folder), d.mesh(), (how, int(step)))


if __name__ == "__main__":
    main(*sys.argv[1:])
