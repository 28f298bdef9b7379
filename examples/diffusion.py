"""Denoising diffusion of the digits: Ho, Jain & Abbeel 2020, arXiv 2006.11239.

    python examples/diffusion.py            three thousand steps, a minute or two
    python examples/diffusion.py --quick    five hundred steps

Noise is added to a digit in T steps, q(x_t|x_0) = N(√ᾱ_t x_0, (1 - ᾱ_t) I), and a small U-Net learns to say
what noise it was. Taking it away step by step makes digits of pure noise. What the average of the weights
draws (`fl.EMA`) is judged by a network that reads the real digits; some are drawn to a PNG file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digit_quality import Judge, Quality
from digits import digits

import fluxlike as fl

T = 100
#: The paper's schedule, from 1e-4 to 0.02 in 1000 steps, in as many steps as there are here.
BETA = torch.linspace(1e-4, 0.02, T) * 1000 / T
ALPHA = 1 - BETA
ALPHA_BAR = ALPHA.cumprod(0)


@fl.functor
class Block:
    """A residual block that is told the time: (N, in, H, W) and (N, times) → (N, out, H, W)."""

    def __init__(self, channels_in, channels_out, times):
        self.first = norm_conv(channels_in, channels_out)
        self.shift = fl.Dense(times, channels_out)
        self.second = norm_conv(channels_out, channels_out)
        same = channels_in == channels_out
        self.around = fl.identity if same else fl.Conv((1, 1), channels_in, channels_out)

    def __call__(self, x, time):
        h = self.first(x) + self.shift(time)[:, :, None, None]
        return self.around(x) + self.second(h)


def norm_conv(channels_in, channels_out):
    return fl.Chain(fl.GroupNorm(channels_in, 8, fl.silu), fl.Conv((3, 3), channels_in, channels_out, pad=1))


@fl.functor
class UNet:
    """ε_θ(x_t, t): the noise in digits (N, 1, 8, 8) at times (N,), at their size and at half of it."""

    def __init__(self, width=16, times=64):
        embed = fl.SinusoidalEmbedding(times)
        self.time = fl.Chain(embed, fl.Dense(times, times, fl.silu), fl.Dense(times, times, fl.silu))
        self.enter = fl.Conv((3, 3), 1, width, pad=1)
        self.down = Block(width, width, times)
        self.halve = fl.Conv((3, 3), width, 2 * width, stride=2, pad=1)
        self.middle = [Block(2 * width, 2 * width, times) for _ in range(2)]
        self.double = fl.ConvTranspose((4, 4), 2 * width, width, stride=2, pad=1)
        self.up = Block(2 * width, width, times)
        self.leave = norm_conv(width, 1)

    def __call__(self, x, t):
        time = self.time(t * 1000 / T)  # in the paper's steps, which the waves of the embedding are made for
        fine = self.down(self.enter(x), time)
        coarse = self.halve(fine)
        for block in self.middle:
            coarse = block(coarse, time)
        return self.leave(self.up(torch.cat((self.double(coarse), fine), 1), time))


def loss(model, x0):
    """L_simple (equation 14): t and ε are drawn from the key of the step."""
    t = fl.random.integers((len(x0),), 0, T)
    noise = fl.random.normal(x0.shape)
    a = ALPHA_BAR[t].view(-1, 1, 1, 1)
    return fl.losses.mse(model(a.sqrt() * x0 + (1 - a).sqrt() * noise, t), noise)


@torch.no_grad()
def sample(model, count, key):
    """Algorithm 2, with σ_t² = β_t. Digits from 0 to 1."""
    with fl.seeded(key):
        x = fl.random.normal((count, 1, 8, 8))
        for t in reversed(range(T)):
            noise = model(x, torch.full((count,), t))
            x = (x - BETA[t] / (1 - ALPHA_BAR[t]).sqrt() * noise) / ALPHA[t].sqrt()
            if t > 0:
                x = x + BETA[t].sqrt() * fl.random.normal(x.shape)
    return (x.clamp(-1, 1) + 1) / 2


def train(images, steps, key):
    """Algorithm 1. The model of the averaged weights."""
    model = UNet()
    state = fl.setup(fl.EMA(fl.Adam(4e-3), decay=1 - 10 / steps), model)
    total = 0.0
    for step in range(steps):
        key_of_batch, key_of_loss = key.fold_in(step).split(2)
        with fl.seeded(key_of_batch):
            x0 = 2 * images[fl.random.integers((64,), 0, len(images))] - 1
        value, grads = fl.withgradient(loss, model, x0, key=key_of_loss)
        model, state = fl.update(state, model, grads)
        total += value.item()
        if (step + 1) % (steps // 5) == 0:
            print(f"step {step + 1:4}: the noise is missed by {total / (steps // 5):.4f}")
            total = 0.0
    return fl.averaged(state, model)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="five hundred steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps, goal = (500, Quality(4.5, 0.65)) if options.quick else (3000, Quality(7.0, 0.25))

    torch.manual_seed(options.seed)
    data, held_out = digits()
    judge = Judge(data, held_out)
    to_train, to_draw = fl.Key(options.seed).split(2)
    model = train(data[0], steps, to_train)
    drawn = sample(model, len(held_out[0]), to_draw)

    judge.require(drawn, goal, options.out / "diffusion.png")


if __name__ == "__main__":
    main()
