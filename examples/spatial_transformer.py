"""A network that straightens its input first: Jaderberg et al. 2015, arXiv 1506.02025.

    python examples/spatial_transformer.py            a hundred epochs, a quarter of a minute
    python examples/spatial_transformer.py --quick    thirty epochs

Digits are rotated, scaled and moved about in an image of four times their area (the paper's RTS digits),
anew at every step. A plain network reads them, and one behind a spatial transformer, which learns where to
look from the labels alone. What it looks at is drawn to a PNG file.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from digit_quality import draw
from digits import accuracy, digits, loss

import fluxlike as fl

SMALL, LARGE = 8, 16


def resample(x, theta, size):
    """Images seen through affine maps (equation 1 and bilinear sampling, equation 5).

    (N, 1, H, W) and θ of (N, 2, 3), from places in the output to places in the input → (N, 1, size, size).
    """
    grid = F.affine_grid(theta, [len(x), 1, size, size], align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def distorted(x):
    """Digits rotated by up to 45°, 0.7 to 1.2 times as large, anywhere in the larger image."""
    n = len(x)
    angle = math.pi / 4 * fl.random.uniform((n,), -1.0, 1.0)
    scale = SMALL / LARGE * fl.random.uniform((n,), 0.7, 1.2)
    shift = 0.4 * fl.random.uniform((n, 2), -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    rotation = torch.stack((cos, sin, -sin, cos), -1).view(n, 2, 2) / scale.view(n, 1, 1)
    return resample(x, torch.cat((rotation, rotation @ shift.unsqueeze(2)), 2), LARGE)


@fl.functor
class SpatialTransformer:
    """A localisation network says where to look, and that part of the image is resampled: → (N, 1, 8, 8)."""

    def __init__(self, hidden=32):
        whole = fl.at(fl.Dense(hidden, 6, init=torch.zeros), ".bias").set(
            torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        )
        self.localisation = fl.Chain(
            fl.flatten, fl.Dense(LARGE**2, hidden, fl.relu), fl.Dense(hidden, hidden, fl.relu), whole
        )

    def __call__(self, x):
        return resample(x, self.localisation(x).view(-1, 2, 3), SMALL)


def reader(size, hidden=96):
    """The paper's fully connected network: (N, 1, size, size) → (N, 10)."""
    return fl.Chain(
        fl.flatten,
        fl.Dense(size**2, hidden, fl.relu),
        fl.Dense(hidden, hidden, fl.relu),
        fl.Dense(hidden, 10),
    )


def distorted_loss(model, x, y):
    return loss(model, distorted(x), y)


def train(model, data, epochs, key):
    steps = epochs * -(-len(data[1]) // 64)
    state = fl.setup(fl.Scheduled(fl.Adam(), lr=fl.schedules.Cosine(3e-3, 0.0, steps)), model)
    step = 0
    for _ in range(epochs):
        for x, y in fl.DataLoader(data, batch_size=64, shuffle=True):
            grads = fl.gradient(distorted_loss, model, x, y, key=key.fold_in(step))
            model, state = fl.update(state, model, grads)
            step += 1
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="thirty epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    epochs, goal, ahead = (30, 0.75, 0.15) if options.quick else (100, 0.93, 0.1)

    torch.manual_seed(options.seed)
    data, (x, y) = digits()
    to_train, to_test = fl.Key(options.seed).split(2)
    with fl.seeded(to_test):
        x = distorted(x)
    models = {
        "without a transformer": reader(LARGE),
        "with one": fl.Chain(SpatialTransformer(), reader(SMALL)),
    }
    found = {}
    for name, model in models.items():
        model = train(model, data, epochs, to_train)
        found[name] = accuracy(model, (x, y))
        count = sum(p.numel() for p in fl.trainables(model))
        print(f"{name}: {found[name]:.2%} of the distorted held-out digits, {count:,} parameters")
    with torch.no_grad():
        draw({"distorted": x[:15], "looked at": model[0](x[:15])}, options.out / "spatial_transformer.png")
    print(f"what the transformer looks at is in {options.out}/spatial_transformer.png")
    without, with_one = found.values()
    if not (with_one > goal and with_one > without + ahead):
        raise SystemExit(f"expected over {goal:.0%}, and {ahead:.0%} more than without a transformer")


if __name__ == "__main__":
    main()
