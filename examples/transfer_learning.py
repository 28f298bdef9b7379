"""Transfer: a network that reads the digits 0 to 6 learns 7, 8 and 9 from five examples of each.

    python examples/transfer_learning.py            five draws of the examples, a minute
    python examples/transfer_learning.py --quick    two draws, less training

The digits are of any size, turned, anywhere on the image, and in noise: what stays the same under all that
is learnt from seven classes, and three more can use it. A small ResNet (He et al. 2015, arXiv 1512.03385)
is trained on the seven and its backbone saved. With a new classifier, `finetune` trains it on few examples
of the three: first the classifier alone, then everything, the backbone more slowly (Howard & Gugger 2020,
arXiv 2002.04688). It is compared with the same network from scratch, on the same examples, for as long.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import fluxlike as fl

SMALL = fl.models.ResNetConfig(depths=(1, 1), bottleneck=False)
OLD, NEW, SHOTS = 7, 3, 5  # classes, and examples of a new one
FROZEN, EPOCHS = 20, 20  # of fine-tuning; from scratch it is their sum


def scattered(images):
    """The images at any place of (N, 1, 32, 32), from 13 to 20 pixels wide, turned by up to 17°, in noise."""
    n = len(images)
    turn, zoom = 0.6 * torch.rand(n) - 0.3, 1.6 + 0.8 * torch.rand(n)
    cos, sin = zoom * turn.cos(), zoom * turn.sin()
    linear = torch.stack([cos, -sin, sin, cos], 1).reshape(n, 2, 2)
    centre = 0.9 * torch.rand(n, 2, 1) - 0.45
    grid = F.affine_grid(torch.cat([linear, -linear @ centre], 2), [n, 1, 32, 32], align_corners=False)
    drawn = F.grid_sample(images, grid, align_corners=False)
    return drawn + 0.3 * torch.randn_like(drawn)


def digits():
    """Images (N, 1, 8, 8) and labels: of the old classes, and of the new ones, whose labels begin at 0."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 8
    labels = torch.tensor(data.target)
    old = labels < OLD
    return (images[old], labels[old]), (images[~old], labels[~old] - OLD)


def few(images, labels):
    """Some examples of each class, drawn at random, and all the others."""
    order = torch.randperm(len(labels))
    rows = torch.cat([order[labels[order] == kind][:SHOTS] for kind in range(NEW)])
    others = torch.ones(len(labels), dtype=torch.bool).index_fill(0, rows, False)
    return (images[rows], labels[rows]), (images[others], labels[others])


def network(classes):
    return fl.models.ResNet(SMALL, inchannels=1, nclasses=classes)


def learner(model, data, batch_size, lr):
    loader = fl.DataLoader(data, batch_size, shuffle=True)
    return fl.Learner(model, loader, fl.AdamW(lr), fl.losses.logitcrossentropy, progress=False)


def accuracy(model, images, labels):
    with torch.no_grad():
        return (fl.onecold(model(images)) == labels).float().mean().item()


def pretrained(images, labels, drawings, file):
    """Train on drawings of the old classes, and save the backbone; the accuracy on a held-out tenth."""
    (x, y), (x_test, y_test) = fl.splitobs((images, labels), at=0.9, shuffle=True)
    data = scattered(x.repeat(drawings, 1, 1, 1)), y.repeat(drawings)
    model = fl.fit_one_cycle(learner(network(OLD), data, 32, 3e-3), 4, 3e-3).model
    fl.save(file, model.backbone)
    return accuracy(model, scattered(x_test), y_test)


def transferred(file, data):
    model = network(NEW)
    model = fl.at(model, ".backbone").set(fl.load(file, like=model.backbone))
    return fl.finetune(learner(model, data, 5, 1e-2), EPOCHS, 1e-2, frozen_epochs=FROZEN).model


def from_scratch(data):
    """With 1e-3 and 3e-3 it is as good as with this rate."""
    return fl.fit_one_cycle(learner(network(NEW), data, 5, 1e-2), FROZEN + EPOCHS, 1e-2).model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two draws, less training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draws, drawings, goal, gap = (2, 2, 0.6, 0.1) if options.quick else (5, 8, 0.75, 0.2)

    torch.manual_seed(options.seed)
    start = time.perf_counter()
    old, (images, labels) = digits()
    new = scattered(images), labels
    file = options.out / "backbone.safetensors"
    print(f"{pretrained(*old, drawings, file):.1%} of the held-out digits 0 to {OLD - 1} read right")
    with_it, without = [], []
    for _ in range(draws):
        data, others = few(*new)
        with_it.append(accuracy(transferred(file, data), *others))
        without.append(accuracy(from_scratch(data), *others))
        print(f"{SHOTS} examples of each new digit: {with_it[-1]:.1%}, from scratch {without[-1]:.1%}")
    transfer, scratch = sum(with_it) / draws, sum(without) / draws
    print(f"in the mean {transfer:.1%} and {scratch:.1%}; {time.perf_counter() - start:.0f} s")
    if not (transfer >= goal and transfer >= scratch + gap):
        raise SystemExit(f"expected at least {goal:.0%}, and {gap:.0%} more than from scratch")


if __name__ == "__main__":
    main()
