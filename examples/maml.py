"""Meta-learning on sines: starts from which few points and few steps are enough (MAML and Reptile).

    python examples/maml.py            a minute
    python examples/maml.py --quick    fewer steps

After Finn et al. 2017, arXiv 1703.03400, section 5.1: the gradient of MAML goes through the inner
optimiser, down to the start and to the inner learning rate, which is learnt too. Reptile (Nichol et al.
2018, arXiv 1803.02999) takes the way from the adapted model back to the start for a gradient, and needs no
second derivatives. Either is two functions of a few lines; the training of the start is the same.
"""

from __future__ import annotations

import argparse
import math
import time

import torch

import fluxlike as fl

POINTS = 10


def tasks(count):
    """Sines of random height and phase: points to adapt to, and points to be judged by."""
    height, phase = 0.1 + 4.9 * torch.rand(count, 1, 1), math.pi * torch.rand(count, 1, 1)
    x = 10 * torch.rand(count, 2 * POINTS, 1) - 5
    y = height * torch.sin(x + phase)
    return x[:, :POINTS], y[:, :POINTS], x[:, POINTS:], y[:, POINTS:]


def loss(model, x, y):
    return fl.losses.mse(model(x), y)


def adapted(start, batches):
    """The model after a step of plain descent on each batch of one task."""
    model = start["model"]
    state = fl.setup(fl.Descent(start["log_lr"].exp()), model)
    for x, y in batches:
        model, state = fl.update(state, model, fl.gradient(loss, model, x, y))
    return model


def meta_loss(start, steps, x, y, x_test, y_test):
    """How well the adapted models do on points that they have not seen, over many tasks at once."""

    def one(x, y, x_test, y_test):
        return loss(adapted(start, steps * [(x, y)]), x_test, y_test)

    return fl.vmap(one)(x, y, x_test, y_test).mean()


def maml(start, steps, *some):
    """The gradient through the inner steps."""
    return fl.gradient(meta_loss, start, steps, *some)


def reptile(start, steps, *some):
    """The way back from where the tasks lead, in the mean. Their halves take turns, and none is judged by."""

    def one(x, y, x_test, y_test):
        return adapted(start, steps // 2 * [(x, y), (x_test, y_test)])

    ends = fl.vmap(one)(*some)
    way_back = fl.tree.sub(start["model"], fl.fmap(lambda p: p.mean(0), ends))
    return {"model": way_back, "log_lr": None}  # None: it stays as it is


#: A direction for the start, the steps on a task, and their learning rate at first.
METHODS = {"MAML": (maml, 3, 0.01), "Reptile": (reptile, 16, 0.02)}


def learn(direction, start, inner_steps, steps):
    """A start, trained by a direction in place of its gradient."""
    rule = fl.Scheduled(fl.Adam(), lr=fl.schedules.Cosine(3e-3, 0.0, steps))
    state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(1.0), rule), start)
    for _ in range(steps):
        grads = direction(start, inner_steps, *tasks(25))
        start, state = fl.update(state, start, grads)
    return start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    steps, goal = (200, 0.8) if options.quick else (1500, 0.1)

    torch.manual_seed(options.seed)
    model = fl.Chain(fl.Dense(1, 40, fl.relu), fl.Dense(40, 40, fl.relu), fl.Dense(40, 1))
    unseen = tasks(500)
    missed = []
    for name, (direction, inner_steps, lr) in METHODS.items():
        random = {"model": model, "log_lr": torch.tensor(math.log(lr))}
        begun = time.perf_counter()
        start = learn(direction, random, inner_steps, steps)
        before, after = (meta_loss(s, inner_steps, *unseen).item() for s in (random, start))
        print(f"{name}, {steps} steps, {time.perf_counter() - begun:.0f} s;", end=" ")
        print(f"adapted to {POINTS} points of an unseen sine in {inner_steps} steps:")
        print(f"  loss from the random start {before:.3f}, from the learnt one {after:.3f}")
        print(f"  the inner learning rate went from {lr} to {start['log_lr'].exp().item():.4f}")
        if not after < goal * before:
            missed.append(name)
    if missed:
        raise SystemExit(f"{' and '.join(missed)}: expected at most {goal} of the loss from the random start")


if __name__ == "__main__":
    main()
