"""A population: 64 networks, 64 learning rates and 64 seeds, trained at once in one compiled step.

    python examples/population.py            five hundred steps, half a minute
    python examples/population.py --quick    a hundred steps

`train_step` is the two lines of training for one network. `vmap` makes it a step of all, and `jit` compiles
that. Everything random comes from keys, one for each network, so that a network of the population is the
one that its key gives alone: the same weights at first, the same batches, the same dropout to the bit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import matplotlib
import torch
from sklearn.datasets import load_digits

import fluxlike as fl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEMBERS, BATCH, HIDDEN = 64, 32, 32


def network(key):
    with fl.seeded(key):
        return fl.Chain(
            fl.Dense(64, HIDDEN, bias=False),
            fl.BatchNorm(HIDDEN),
            fl.Dropout(0.2),
            fl.relu,
            fl.Dense(HIDDEN, 10),
        )


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def batch(x, y):
    """Some of the rows, drawn from the key in scope."""
    rows = fl.random.integers((BATCH,), 0, len(x))
    return x[rows], y[rows]


def train_step(model, state, key, step, x, y):
    """One step of one network."""
    with fl.seeded(key.fold_in(step)):
        grads = fl.gradient(loss, model, *batch(x, y))
    return fl.update(state, model, grads)


def dropped(model, key, step, x, y):
    """Which entries dropout zeroes in that step."""
    with fl.seeded(key.fold_in(step)), fl.mode("train"):
        x, _ = batch(x, y)
        return fl.activations(model, x)[".layers[2]"] == 0


def accuracy(model, x, y):
    return (fl.onecold(model(x), dim=-1) == y).float().mean(-1)


def newborn(keys, rates):
    """Networks and their optimisers, each from its key and with its rate."""
    models = [network(key) for key in keys]
    states = [fl.setup(fl.Adam(lr), model) for lr, model in zip(rates, models, strict=True)]
    return models, states


def train_all(models, states, keys, data, steps):
    """The population after so many steps, and the seconds a step takes."""
    models, states = fl.stack(models), fl.stack(states)
    step = fl.jit(fl.vmap(train_step, in_dims=(0, 0, 0, None, None, None)), donate=(0, 1))
    models, states = step(models, states, keys, torch.tensor(0), *data)  # this call compiles
    start = time.perf_counter()
    for t in range(1, steps):
        models, states = step(models, states, keys, torch.tensor(t), *data)
    return models, (time.perf_counter() - start) / (steps - 1)


def train_alone(model, state, key, data, steps):
    """One network by itself, not compiled, and the seconds a step takes."""
    start = time.perf_counter()
    for t in range(steps):
        model, state = train_step(model, state, key, torch.tensor(t), *data)
    return model, (time.perf_counter() - start) / steps


def same_draws(models, key, data, chosen):
    """Whether dropout draws the same bits for a network alone, among eight, and among all."""
    at_once = fl.vmap(dropped, in_dims=(0, 0, None, None, None))
    keys, step = key.split(MEMBERS), torch.tensor(7)
    masks = at_once(fl.stack(models), keys, step, *data)
    few = at_once(fl.stack(models[:8]), key.split(8), step, *data)
    alone = dropped(models[chosen], keys[chosen], step, *data)
    return torch.equal(few, masks[:8]) and torch.equal(alone, masks[chosen])


def difference(a, b):
    """The largest difference of two models, relative to the largest entry of each tensor."""
    pairs = zip(fl.fleaves(a), fl.fleaves(b), strict=True)
    return max(((x - y).abs().max() / y.abs().max()).item() for x, y in pairs)


def draw(rates, accuracies, chosen, path):
    figure, axis = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    percent = 100 * accuracies
    window = 8
    middle = torch.tensor(rates).log().unfold(0, window, 1).mean(1).exp()
    axis.semilogx(rates, percent, ".", color="tab:blue", label="a network, with a seed of its own")
    axis.semilogx(middle, percent.unfold(0, window, 1).mean(1), color="tab:orange", label=f"mean of {window}")
    axis.semilogx(rates[chosen], percent[chosen], "o", mfc="none", ms=10, color="black", label="the best")
    axis.set(xlabel="learning rate of Adam", ylabel="held-out accuracy (%)", ylim=(0, 102))
    axis.legend(frameon=False, loc="lower center")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps, goal = (100, 0.93) if options.quick else (500, 0.96)

    torch.set_num_threads(1)  # kernels so small only wait for one another on several cores
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16
    data, held_out = fl.splitobs((images, torch.tensor(digits.target)), at=0.8, shuffle=True, key=fl.Key(1))
    key = fl.Key(0)
    keys = key.split(MEMBERS)
    rates = torch.logspace(-4, 0, MEMBERS, dtype=torch.float64).tolist()
    models, states = newborn(keys, rates)

    population, seconds = train_all(models, states, keys, data, steps)
    accuracies = fl.vmap(accuracy, in_dims=(0, None, None))(population, *held_out)
    best = int(accuracies.argmax())
    draw(rates, accuracies, best, options.out / "population.png")
    print(f"{MEMBERS} networks, {steps} steps; the best reads {accuracies[best]:.1%} of the held-out digits")
    print(f"  and has the learning rate {rates[best]:.2g}; drawn in {options.out}/population.png")

    # One of a usual rate; at those near 1, training is chaotic, and rounding grows from step to step.
    one = min(range(MEMBERS), key=lambda i: abs(rates[i] - 1e-3))
    alone, seconds_alone = train_alone(models[one], states[one], keys[one], data, steps)
    apart = difference(fl.unstack(population)[one], alone)
    same = same_draws(models, key, data, one)
    print(f"number {one} trained alone, not compiled: its parameters differ by {apart:.1e} of their size")
    print(f"dropout's draws alone, among 8 and among {MEMBERS}: {'the same bits' if same else 'DIFFERENT'}")
    print(f"a step of all {MEMBERS}, compiled: {1e3 * seconds:.2f} ms; one after the other, not compiled,")
    print(f"  {1e3 * MEMBERS * seconds_alone:.1f} ms: {MEMBERS * seconds_alone / seconds:.0f} times as long")
    if not (accuracies[best] >= goal and apart < 1e-3 and same):
        raise SystemExit(f"expected at least {goal:.0%}, the same network alone, and the same draws")


if __name__ == "__main__":
    main()
