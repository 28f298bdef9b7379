"""LeNet-5 beside a network without convolutions: LeCun, Bottou, Bengio & Haffner 1998.

    python examples/lenet.py            thirty epochs of each, a quarter of a minute
    python examples/lenet.py --quick    eight epochs

"Gradient-based learning applied to document recognition" (doi 10.1109/5.726791) reads digits of 32 × 32.
Those of scikit-learn are the counts of such, so they are enlarged again. Both networks train in a `Learner`
with `fit`; its history of losses and metrics is drawn to a PNG file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import digits

import fluxlike as fl


def squash(x):
    """The paper's activation (its appendix A)."""
    return 1.7159 * fl.tanh(2 / 3 * x)


def lenet5():
    """The paper's layers, C3 with all connections, and scores in the place of distances to drawn digits."""
    return fl.Chain(
        enlarge=fl.Upsample(4, "bilinear"),  # (N, 1, 8, 8) → (N, 1, 32, 32)
        c1=fl.Conv((5, 5), 1, 6, squash),
        s2=fl.MeanPool((2, 2)),
        c3=fl.Conv((5, 5), 6, 16, squash),
        s4=fl.MeanPool((2, 2)),
        c5=fl.Conv((5, 5), 16, 120, squash),
        flatten=fl.flatten,
        f6=fl.Dense(120, 84, squash),
        output=fl.Dense(84, 10),
    )


def mlp():
    """One hidden layer of 300: one of the networks of section III.C."""
    return fl.Chain(flatten=fl.flatten, hidden=fl.Dense(64, 300, squash), output=fl.Dense(300, 10))


def top3(scores, y):
    """How often the digit is among the three that are most likely."""
    return (scores.topk(3).indices == y.unsqueeze(1)).any(1).float().mean()


def train(model, data, held_out, epochs):
    loaders = fl.DataLoader(data, batch_size=32, shuffle=True), fl.DataLoader(held_out, batch_size=128)
    learner = fl.Learner(
        model, loaders, fl.Adam(), fl.losses.logitcrossentropy,
        metrics={"accuracy": fl.metrics.accuracy, "top 3": top3},
    )  # fmt: skip
    return fl.fit_one_cycle(learner, epochs, 3e-3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="eight epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    epochs, goals = (8, (0.95, 0.92)) if options.quick else (30, (0.96, 0.94))

    torch.manual_seed(options.seed)
    data, held_out = digits()
    accuracies = {}
    for name, model in {"lenet5": lenet5(), "mlp": mlp()}.items():
        print(model)
        learner = train(model, data, held_out, epochs)
        learner.history.plot().savefig(options.out / f"{name}.png")
        accuracies[name] = learner.history.last("validation", "accuracy")
    for name, value in accuracies.items():
        print(f"{name}: {value:.2%} of {len(held_out[1])} held-out digits read right")
    print(f"losses and metrics are in {options.out}/lenet5.png and mlp.png")
    for (name, value), goal in zip(accuracies.items(), goals, strict=True):
        if value < goal:
            raise SystemExit(f"expected at least {goal:.0%} of {name}")


if __name__ == "__main__":
    main()
