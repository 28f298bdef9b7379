"""Which iris is it? Logistic regression and a small network, on the 150 flowers of Fisher 1936.

    python examples/iris.py            three splits of the flowers, a few seconds
    python examples/iris.py --quick    one split, fewer steps

The first example of Flux's model zoo. The flowers (Fisher 1936, "The use of multiple measurements in
taxonomic problems", doi 10.1111/j.1469-1809.1936.tb02137.x) are measured in four ways; a third of each
species is held out. All of the others are one batch, whose gradient has no noise: plain descent is enough.
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split

import fluxlike as fl

MODELS = {
    "logistic regression": lambda: fl.Dense(4, 3),
    "one hidden layer": lambda: fl.Chain(fl.Dense(4, 16, fl.tanh), fl.Dense(16, 3)),
}


def flowers(seed):
    """Measurements (N, 4) of mean 0 and deviation 1, and species (N,): for training, and held out."""
    iris = load_iris()
    parts = train_test_split(iris.data, iris.target, test_size=50, stratify=iris.target, random_state=seed)
    x, x_test, y, y_test = map(torch.as_tensor, parts)
    mean, deviation = x.mean(0), x.std(0)  # of the flowers for training alone
    scaled = [((part - mean) / deviation).float() for part in (x, x_test)]
    return (scaled[0], y), (scaled[1], y_test), list(iris.target_names)


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def train(model, x, y, steps):
    state = fl.setup(fl.Descent(0.5), model)
    for _ in range(steps):
        grads = fl.gradient(loss, model, x, y)
        model, state = fl.update(state, model, grads)
    return model


def confusion(model, x, y):
    """How many flowers of each species (rows) are taken for which (columns)."""
    with torch.no_grad():
        taken = fl.onecold(model(x))
    return torch.bincount(3 * y + taken, minlength=9).reshape(3, 3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one split, fewer steps")
    options = parser.parse_args()
    seeds, steps, goal = ([0], 100, 0.9) if options.quick else ([0, 1, 2], 300, 0.92)

    worst = 1.0
    for name, make in MODELS.items():
        for seed in seeds:
            torch.manual_seed(seed)
            data, held_out, species = flowers(seed)
            model = make()
            before = confusion(model, *held_out).diag().sum() / 50
            counts = confusion(train(model, *data, steps), *held_out)
            after = counts.diag().sum() / 50
            worst = min(worst, after.item())
            print(f"{name}, split {seed}: {before:.0%} of 50 held-out flowers right, trained {after:.0%}")
        print("", f"{'taken for:':>12}", *(f"{kind:>11}" for kind in species))
        for kind, row in zip(species, counts.tolist(), strict=True):
            print("", f"{kind:>12}", *(f"{count:11}" for count in row))
    if worst < goal:
        raise SystemExit(f"expected at least {goal:.0%} on every split")


if __name__ == "__main__":
    main()
