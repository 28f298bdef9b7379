"""A network of ±1: binary weights and activations by a gradient of one's own, on the digits.

    python examples/xnor.py            ten epochs, some seconds
    python examples/xnor.py --quick    two epochs

After XNOR-Net (Rastegari et al. 2016, arXiv 1603.05279): a convolution of signs alone, scaled by the mean
absolute weight of each filter (their scale of the inputs, K, is left out). A sign has the slope 0, so what
its gradient is, the user says: it passes straight through where -1 < x < 1. Training moves the real weights
behind the signs. Afterwards one bit a weight is enough: the example computes the same layers from booleans,
by XNOR and counting.
"""

from __future__ import annotations

import argparse
import time

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import fluxlike as fl


@fl.custom_gradient
def sign(x):
    """1 where x ≥ 0, else -1; the gradient passes where -1 < x < 1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype), lambda g: g * (x.abs() < 1)


@fl.functor
class BinaryConv:
    """A 3×3 convolution of the signs of its input and of its weight: (N, in, H, W) to (N, out, H, W)."""

    def __init__(self, channels_in, channels_out):
        self.weight = fl.init.glorot_uniform((channels_out, channels_in, 3, 3))

    def __call__(self, x):
        return scale(self) * F.conv2d(sign(with_border(x)), sign(self.weight))


def scale(layer):
    """The mean absolute weight of each filter, (out, 1, 1)."""
    return layer.weight.abs().mean((1, 2, 3))[:, None, None]


def with_border(x):
    """Images with a border of zeros, whose sign is 1."""
    return F.pad(x, (1, 1, 1, 1))


def by_bits(layer, x):
    """What a BinaryConv computes, from booleans: where input and weight agree is 1, else -1."""
    inputs = F.unfold(with_border(x), 3) >= 0  # (N, in·9, H·W)
    weights = layer.weight.flatten(1) >= 0  # (out, in·9)
    agree = torch.stack([(~(inputs ^ filter[:, None])).sum(1) for filter in weights], dim=1)
    counts = 2 * agree - weights.shape[1]
    return scale(layer) * counts.reshape(len(x), -1, *x.shape[2:])


def network():
    return fl.Chain(
        fl.Conv((3, 3), 1, 32, pad=1),  # as in the paper, the first and the last layer stay real
        fl.BatchNorm(32),
        BinaryConv(32, 64),
        fl.MaxPool((2, 2)),
        fl.BatchNorm(64),
        BinaryConv(64, 64),
        fl.BatchNorm(64, fl.relu),
        fl.MaxPool((2, 2)),
        fl.flatten,
        fl.Dense(64 * 2 * 2, 10),
    )


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def train(model, data, epochs):
    state = fl.setup(fl.Adam(), model)
    for epoch in range(epochs):
        state = fl.adjust(state, 3e-3 * (1 - epoch / epochs))
        for x, y in fl.DataLoader(data, batch_size=64, shuffle=True):
            grads = fl.gradient(loss, model, x, y)
            model, state = fl.update(state, model, grads)
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs")
    epochs, goal = (2, 0.9) if parser.parse_args().quick else (10, 0.96)

    points = torch.tensor([-1.5, -0.5, 0.5, 1.5])
    slopes = fl.gradient(lambda x: sign(x).sum(), points)
    print(f"the gradient of sign at {points.tolist()}: {slopes.tolist()}")

    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    data, (x, y) = fl.splitobs((images, torch.tensor(digits.target)), at=0.8, shuffle=True)
    start = time.perf_counter()
    model = train(network(), data, epochs)
    with torch.no_grad():
        accuracy = (fl.onecold(model(x)) == y).float().mean().item()
    print(model)
    print(f"{accuracy:.2%} of {len(y)} held-out digits read right, after {time.perf_counter() - start:.0f} s")

    outputs = fl.activations(model, x)
    same = True
    for before, place in ((1, 2), (4, 5)):
        layer, given = model.layers[place], outputs[f".layers[{before}]"]
        values, bits = sign(layer.weight).unique().tolist(), layer.weight.numel()
        equal = torch.equal(by_bits(layer, given), outputs[f".layers[{place}]"])
        same = same and equal and values == [-1.0, 1.0]
        print(
            f".layers[{place}] uses {bits:,} weights of the values {values}, which are {bits // 8:,} bytes;"
        )
        print(f"  by XNOR and counting of bits, its output is {'equal' if equal else 'NOT EQUAL'}")
    if not (accuracy >= goal and same and slopes.tolist() == [0.0, 1.0, 1.0, 0.0]):
        raise SystemExit(f"expected at least {goal:.0%}, ±1 alone, and the same from bits")


if __name__ == "__main__":
    main()
