"""Meta-learning on sines: a start from which few points and few steps are enough (MAML).

python examples/maml.py            about a minute
python examples/maml.py --quick    fewer steps

After Finn et al. 2017, arXiv 1703.03400, section 5.1. The gradient goes through the inner optimiser,
down to the start and to the inner learning rate, which is learnt too.
"""

from __future__ import annotations

import argparse
import math

import torch

import fluxlike as fl

POINTS, INNER_STEPS = 10, 3


def tasks(count):
    """Sines of random height and phase: points to adapt to, and points to be judged by."""
    height, phase = 0.1 + 4.9 * torch.rand(count, 1, 1), math.pi * torch.rand(count, 1, 1)
    x = 10 * torch.rand(count, 2 * POINTS, 1) - 5
    y = height * torch.sin(x + phase)
    return x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:]


def loss(model, x, y):
    return fl.losses.mse(model(x), y)


def adapted(model, lr, x, y):
    """The model after a few steps of plain descent on one task."""
    state = fl.setup(fl.Descent(lr), model)
    for _ in range(INNER_STEPS):
        model, state = fl.update(state, model, fl.gradient(loss, model, x, y))
    return model


def meta_loss(start, x, y, x_test, y_test):
    """How well the adapted models do on points that they have not seen, over many tasks at once."""

    def one(x, y, x_test, y_test):
        return loss(adapted(start["model"], start["log_lr"].exp(), x, y), x_test, y_test)

    return torch.vmap(one)(x, y, x_test, y_test).mean()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    steps, goal = (200, 0.8) if parser.parse_args().quick else (1500, 0.1)

    torch.manual_seed(0)
    model = fl.Chain(fl.Dense(1, 40, fl.relu), fl.Dense(40, 40, fl.relu), fl.Dense(40, 1))
    start = {"model": model, "log_lr": torch.tensor(math.log(0.01))}
    unseen = tasks(500)
    before = meta_loss(start, *unseen).item()

    rule = fl.Scheduled(fl.Adam(), lr=fl.schedules.Cosine(3e-3, 0.0, steps))
    state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(1.0), rule), start)
    for step in range(steps):
        value, grads = fl.withgradient(meta_loss, start, *tasks(25))
        start, state = fl.update(state, start, grads, donate=True)
        if step % (steps // 5) == 0:
            print(f"step {step:5}: loss after adapting {value.item():.3f}")

    after = meta_loss(start, *unseen).item()
    print(f"adapting to {POINTS} points of an unseen sine in {INNER_STEPS} steps:")
    print(f"  loss from the random start {before:.3f}, from the learnt one {after:.3f}")
    print(f"  the inner learning rate went from 0.01 to {start['log_lr'].exp().item():.4f}")
    if not after < goal * before:
        raise SystemExit(f"expected at most {goal} of the loss from the random start")


if __name__ == "__main__":
    main()
