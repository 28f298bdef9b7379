"""A network reads the digits on one device or on many, by one script, and goes on where it was killed.

    python examples/many_devices.py                                  one device, fifteen epochs
    torchrun --nproc-per-node 2 examples/many_devices.py             two, with the same numbers
    torchrun --nproc-per-node 2 examples/many_devices.py --folder runs/digits

--quick is four epochs, --jit compiles the step. With --folder each epoch ends with a checkpoint there, and
the same command, on any number of devices, goes on from it. Model, loss and step know nothing of the mesh.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits

import fluxlike as fl
from fluxlike import distributed as d

BATCH = 64
TO_SPLIT, TO_START, TO_SHUFFLE, TO_DROP = fl.Key(0).split(4)


def digits():
    """Rows of 64 pixels from 0 to 1, and labels, split into training and a held-out fifth."""
    x, y = load_digits(return_X_y=True)
    data = torch.tensor(x, dtype=torch.float32) / 16, torch.tensor(y)
    return fl.splitobs(data, at=0.8, shuffle=True, key=TO_SPLIT)


def network():
    def block(n_in, n_out):
        return fl.Chain(fl.Dense(n_in, n_out, bias=False), fl.BatchNorm(n_out, fl.relu), fl.Dropout(0.3))

    return fl.Chain(block(64, 256), block(256, 256), fl.Dense(256, 10))


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def train_step(model, state, key, x, y):
    value, grads = fl.withgradient(loss, model, x, y, key=key)
    return value, *fl.update(state, model, grads)


def beginning(mesh):
    """A run that has not begun. Of n devices each has 1/n of parameters, gradients and moments."""
    with fl.seeded(TO_START):
        model = fl.to_device(network(), mesh, d.shard())
    return {"model": model, "state": fl.setup(fl.AdamW(2e-3), model), "epoch": 0}


def resumed(folder, run):
    """The run of a checkpoint, laid out as `run` is; where there is none, `run`."""
    try:
        return d.load(folder, like=run)
    except FileNotFoundError:  # on every rank, if on one
        return run


def accuracy(model, data, mesh):
    x, y = d.shard_batch(data, mesh)
    with torch.no_grad():
        return (fl.onecold(model(x)) == y).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four epochs")
    parser.add_argument("--jit", action="store_true", help="compile the step")
    parser.add_argument("--folder", type=Path, help="keep a checkpoint here, and go on from it")
    options = parser.parse_args()
    epochs, goal = (4, 0.94) if options.quick else (15, 0.97)

    d.init()
    mesh = d.mesh()
    data, held_out = digits()
    loader = fl.DataLoader(data, BATCH, shuffle=True, key=TO_SHUFFLE, device=mesh)
    step = fl.jit(train_step, donate=("model", "state")) if options.jit else train_step

    run = beginning(mesh)
    if options.folder:
        run = resumed(options.folder, run)
    model, state = run["model"], run["state"]
    for epoch in range(run["epoch"], epochs):
        total = 0.0
        for batch, (x, y) in enumerate(loader.epoch(epoch)):
            key = TO_DROP.fold_in(epoch).fold_in(batch)
            value, model, state = step(model, state, key, x, y)
            total += value.item()
        if options.folder:
            d.save(options.folder, {"model": model, "state": state, "epoch": epoch + 1})
        if d.rank() == 0:
            print(f"epoch {epoch + 1:2}: loss {total / len(loader):.4f}", flush=True)

    right = accuracy(model, held_out, mesh)
    if d.rank() == 0:
        print(f"{right:.2%} of {len(held_out[1])} held-out digits read right; ranks: {d.world_size()}")
    if right < goal:
        raise SystemExit(f"expected at least {goal:.0%}")


if __name__ == "__main__":
    main()
