"""Two networks against each other: a generative adversarial network of the digits.

    python examples/gan.py            four thousand steps, a minute
    python examples/gan.py --quick    six hundred steps

After Goodfellow et al. 2014, arXiv 1406.2661, with networks in the manner of DCGAN (Radford et al. 2015,
arXiv 1511.06434). Two models, two states, and a step of two lines for each. What the generator draws is
judged by a network that reads the real digits; some are drawn to a PNG file.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
from digit_quality import Judge, Quality
from digits import digits

import fluxlike as fl

LATENT, WIDTH = 32, 32

leaky = partial(fl.leaky_relu, negative_slope=0.2)


def generator():
    """G: (N, 32, 1, 1) → digits (N, 1, 8, 8) from -1 to 1."""
    return fl.Chain(
        fl.ConvTranspose((2, 2), LATENT, 2 * WIDTH, bias=False),
        fl.BatchNorm(2 * WIDTH, fl.relu),
        fl.ConvTranspose((4, 4), 2 * WIDTH, WIDTH, stride=2, pad=1, bias=False),
        fl.BatchNorm(WIDTH, fl.relu),
        fl.ConvTranspose((4, 4), WIDTH, 1, fl.tanh, stride=2, pad=1),
    )


def discriminator():
    """D, before the sigmoid: (N, 1, 8, 8) → (N, 1)."""
    return fl.Chain(
        fl.Conv((4, 4), 1, WIDTH, leaky, stride=2, pad=1),
        fl.Conv((4, 4), WIDTH, 2 * WIDTH, stride=2, pad=1, bias=False),
        fl.BatchNorm(2 * WIDTH, leaky),
        fl.flatten,
        fl.Dense(2 * WIDTH * 2 * 2, 1),
    )


def generate(g, count):
    return g(fl.random.normal((count, LATENT, 1, 1)))


def loss_d(d, g, x):
    """-E log D(x) - E log(1 - D(G(z))), which the discriminator descends."""
    return fl.softplus(-d(x)).mean() + fl.softplus(d(generate(g, len(x)))).mean()


def loss_g(g, d, count):
    """-E log D(G(z)): the form that the paper trains the generator by, whose slope does not vanish."""
    return fl.softplus(-d(generate(g, count))).mean()


def train_step(g, state_g, d, state_d, x, key):
    """A step of D on digits and on what G draws, and one of G."""
    key_d, key_g = key.split(2)
    value_d, grads = fl.withgradient(loss_d, d, g, x, key=key_d)
    d, state_d = fl.update(state_d, d, grads)
    value_g, grads = fl.withgradient(loss_g, g, d, len(x), key=key_g)
    g, state_g = fl.update(state_g, g, grads)
    return g, state_g, d, state_d, (value_d, value_g)


def train(images, steps, key):
    g, d = generator(), discriminator()
    rule = fl.Adam(1e-3, betas=(0.5, 0.999))
    state_g, state_d = fl.setup(rule, g), fl.setup(rule, d)
    for step in range(steps):
        key_of_batch, key_of_step = key.fold_in(step).split(2)
        with fl.seeded(key_of_batch):
            x = 2 * images[fl.random.integers((64,), 0, len(images))] - 1
        g, state_g, d, state_d, values = train_step(g, state_g, d, state_d, x, key_of_step)
        if (step + 1) % (steps // 5) == 0:
            print(f"step {step + 1:4}: loss of D {values[0].item():.2f}, of G {values[1].item():.2f}")
    return g


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="six hundred steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps, goal = (600, Quality(5.5, 0.45)) if options.quick else (4000, Quality(7.0, 0.22))

    torch.manual_seed(options.seed)
    data, held_out = digits()
    judge = Judge(data, held_out)
    to_train, to_draw = fl.Key(options.seed).split(2)
    model = train(data[0], steps, to_train)
    with torch.no_grad(), fl.seeded(to_draw):
        drawn = (generate(model, len(held_out[0])) + 1) / 2

    judge.require(drawn, goal, options.out / "gan.png")


if __name__ == "__main__":
    main()
