"""A variational autoencoder of the digits: Kingma & Welling 2013, arXiv 1312.6114.

    python examples/vae.py            a hundred epochs, a quarter of a minute
    python examples/vae.py --quick    twenty epochs

Judged by the bound itself: on average, a held-out digit is described in at most so many bits. A pixel of
these digits counts how many of 16 cells are inked, so p(x|z) is a distribution of counts, and bits are
bits. Other descriptions to compare with: each pixel by how often its values occurred, for all digits or for
each of the ten. Reconstructions and samples are drawn to a PNG file.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from digit_quality import draw
from digits import digits

import fluxlike as fl

CELLS, PIXELS, LATENT = 16, 64, 10


@fl.functor
class VAE:
    """q(z|x) = N(μ, σ²) and p(x|z), each by a network, for counts x of shape (N, 64)."""

    def __init__(self, hidden=256):
        def network(n, out):
            return fl.Chain(
                fl.Dense(n, hidden, fl.gelu), fl.Dense(hidden, hidden, fl.gelu), fl.Dense(hidden, out)
            )

        self.encoder, self.decoder = network(PIXELS, 2 * LATENT), network(LATENT, 2 * PIXELS)

    def encode(self, x):
        mean, log_deviation = self.encoder(2 * x / CELLS - 1).chunk(2, 1)
        return mean, log_deviation.exp()

    def decode(self, z):
        a, b = fl.softplus(self.decoder(z)).add(1e-3).chunk(2, 1)
        return a, b


def log_likelihood(x, a, b):
    """log p(x|z) of a beta-binomial: the cells inked of 16, with a probability that is Beta(a, b)."""

    def log_beta(a, b):
        return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)

    choices = -math.log(CELLS + 1) - log_beta(x + 1, CELLS - x + 1)
    return (choices + log_beta(x + a, CELLS - x + b) - log_beta(a, b)).sum(1)


def elbo(model, x):
    """L(θ, φ; x) = -KL(q(z|x) ‖ p(z)) + E log p(x|z) by one draw of z (equation 10), in nats."""
    mean, deviation = model.encode(x)
    z = mean + deviation * fl.random.normal(mean.shape)
    kl = (mean**2 + deviation**2 - 1 - 2 * deviation.log()).sum(1) / 2
    return log_likelihood(x, *model.decode(z)) - kl


def loss(model, x):
    return -elbo(model, x).mean()


@torch.no_grad()
def bits(model, x, key, draws=50):
    """The bound, as bits a digit."""
    with fl.seeded(key):
        return sum(loss(model, x) for _ in range(draws)).item() / draws / math.log(2)


def bits_by_frequency(x, groups, test):
    """Bits a digit where pixel i has the value k as often as in `x`, in one of the groups at random."""
    logs = []
    for group in groups:
        counts = (x[group].unsqueeze(2) == torch.arange(CELLS + 1)).sum(0) + 0.1
        log_p = (counts / counts.sum(1, keepdim=True)).log()
        logs.append(log_p[torch.arange(PIXELS), test.long()].sum(1))
    return -(torch.stack(logs).logsumexp(0) - math.log(len(groups))).mean().item() / math.log(2)


def train(data, epochs, key):
    model = VAE()
    steps = epochs * -(-len(data) // 64)
    state = fl.setup(fl.Scheduled(fl.Adam(), lr=fl.schedules.Cosine(2e-3, 0.0, steps)), model)
    step = 0
    for epoch in range(epochs):
        for x in fl.DataLoader(data, batch_size=64, shuffle=True):
            value, grads = fl.withgradient(loss, model, x, key=key.fold_in(step))
            model, state = fl.update(state, model, grads)
            step += 1
        if (epoch + 1) % (epochs // 5) == 0:
            print(f"epoch {epoch + 1:3}: {value.item() / math.log(2):.1f} bits a digit")
    return model


@torch.no_grad()
def pictures(model, x, key):
    """Digits, their reconstructions and samples: the mean of p(x|z), of z from q(z|x) and from p(z)."""

    def mean(z):
        a, b = model.decode(z)
        return (a / (a + b)).view(-1, 1, 8, 8)

    with fl.seeded(key):
        samples = mean(fl.random.normal((30, LATENT))).split(15)
    rows = {"digits": (x[:15] / CELLS).view(-1, 1, 8, 8), "reconstructed": mean(model.encode(x[:15])[0])}
    return rows | {"drawn": samples[0], "drawn too": samples[1]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="twenty epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    epochs, goal = (20, 20) if options.quick else (100, 30)

    torch.manual_seed(options.seed)
    (x, y), (x_test, _) = digits()
    x, x_test = (CELLS * images.flatten(1) for images in (x, x_test))
    to_train, to_judge, to_draw = fl.Key(options.seed).split(3)
    model = train(x, epochs, to_train)

    found = bits(model, x_test, to_judge)
    pixels = bits_by_frequency(x, [slice(None)], x_test)
    by_digit = bits_by_frequency(x, [y == digit for digit in range(10)], x_test)
    print(f"bits for a held-out digit: {found:.1f} at most, {bits(model, x, to_judge):.1f} for a trained one")
    print(f"by the frequencies of its pixels' values: {pixels:.1f}, of each digit apart {by_digit:.1f}")
    draw(pictures(model, x_test, to_draw), options.out / "vae.png")
    print(f"reconstructions and samples are in {options.out}/vae.png")
    if not found < pixels - goal:
        raise SystemExit(f"expected at least {goal} bits less than by frequencies")


if __name__ == "__main__":
    main()
