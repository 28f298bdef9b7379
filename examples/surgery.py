"""Freezing and surgery: a network that knows the digits 0 to 4 learns 5 to 9 with a new head.

python examples/surgery.py            a few seconds
python examples/surgery.py --quick    fewer epochs
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits

import fluxlike as fl


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def fit(model, state, data, epochs, wrt=None):
    for _ in range(epochs):
        for x, y in fl.DataLoader(data, batch_size=32, shuffle=True):
            grads = fl.gradient(loss, model, x, y, wrt=wrt)
            model, state = fl.update(state, model, grads)
    return model, state


def accuracy(model, data):
    with torch.no_grad():
        return (fl.onecold(model(data[0])) == data[1]).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer epochs")
    epochs, goal = (3, 0.8) if parser.parse_args().quick else (10, 0.95)

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target)
    low, high = labels < 5, labels >= 5
    first_task = (images[low], labels[low])
    train, test = fl.splitobs((images[high], labels[high] - 5), at=0.5, shuffle=True)

    model = fl.Chain(
        backbone=fl.Chain(
            fl.Conv((3, 3), 1, 32, pad=1),
            fl.BatchNorm(32, fl.relu),
            fl.MaxPool((2, 2)),
            fl.Conv((3, 3), 32, 64, pad=1),
            fl.BatchNorm(64, fl.relu),
            fl.GlobalMeanPool(),
        ),
        head=fl.Dense(64, 5),
    )
    model, _ = fit(model, fl.setup(fl.AdamW(3e-3), model), first_task, epochs)
    print(f"digits 0 to 4 with the first head: {accuracy(model, first_task):.1%}")

    # Surgery: a new tree with another head. The old model is still there, and still whole.
    model = fl.at(model, lambda m: m["head"]).set(fl.Dense(64, 5))
    # The backbone keeps its running statistics: it is pinned in test mode.
    model = fl.at(model, lambda m: m["backbone"]).apply(fl.testmode)
    backbone = fl.fleaves(model["backbone"])

    # Only the head learns: with wrt=, the backward pass of the backbone is not even computed.
    state = fl.setup(fl.AdamW(1e-2), model)
    model, state = fit(model, state, train, epochs, wrt=lambda m: m["head"])
    untouched = all(a is b for a, b in zip(backbone, fl.fleaves(model["backbone"]), strict=True))
    head_only = accuracy(model, test)
    print(f"digits 5 to 9, new head alone: {head_only:.1%}; the backbone is untouched: {untouched}")

    # Then all of it, the backbone at a tenth of the rate, its first layer frozen.
    model = fl.automode(model)
    state = fl.setup(lambda path: fl.AdamW(3e-3 if path.startswith(".layers[1]") else 3e-4), model)
    state = fl.freeze(state, lambda s: s["backbone"].layers[0])
    first_layer = model["backbone"].layers[0]
    model, state = fit(model, state, train, epochs)
    frozen = model["backbone"].layers[0].weight is first_layer.weight
    print(f"digits 5 to 9, fine-tuned: {accuracy(model, test):.1%}; the first layer is frozen: {frozen}")
    if not (untouched and frozen and accuracy(model, test) >= goal):
        raise SystemExit(
            f"expected a fine-tuned accuracy of at least {goal:.0%}, and frozen layers untouched"
        )


if __name__ == "__main__":
    main()
