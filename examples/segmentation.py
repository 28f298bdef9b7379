"""A UNet over a ResNet labels each pixel of drawn circles, squares and triangles.

    python examples/segmentation.py            over ResNet-18, 1,000 images, five epochs, minutes on one core
    python examples/segmentation.py --quick    over a smaller one, 320 images, three epochs

UNet cuts the backbone where its feature maps shrink and joins each map on the way back up. The loss is the
cross entropy of the pixels and the Dice loss of the classes; the goal is the intersection over union of each
class on images that it has not seen.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import matplotlib
import torch
from drawn_shapes import NAMES, drawn_shapes

import fluxlike as fl

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZE = 64
CLASSES = ("nothing", *NAMES)


def loss(model, images, labels):
    scores = model(images)
    masks = torch.nn.functional.one_hot(labels, len(CLASSES)).movedim(-1, 1).to(scores.dtype)
    overlap = fl.losses.dice_coeff(scores.softmax(1), masks, dim=(0, 2, 3))
    return fl.losses.logitcrossentropy(scores, labels) + overlap


def labelled(model, images):
    """The likeliest class of each pixel."""
    with torch.no_grad():
        return torch.cat([model(x).argmax(1) for x in images.split(50)])


def shares(found, labels):
    """The intersection over union of the pixels of each class."""
    pairs = [(found == c, labels == c) for c in range(len(CLASSES))]
    return [((a & b).sum() / (a | b).sum()).item() for a, b in pairs]


def train(model, data, epochs, tick):
    state = fl.setup(fl.AdamW(1e-3), model)
    loader = fl.DataLoader(data, batch_size=16, shuffle=True)
    step, steps = 0, epochs * len(loader)
    for epoch in range(epochs):
        total = 0.0
        for images, labels in loader:
            state = fl.adjust(state, 1e-3 * (1 + math.cos(math.pi * step / steps)) / 2)
            value, grads = fl.withgradient(loss, model, images, labels)
            model, state = fl.update(state, model, grads)
            total, step = total + value.item(), step + 1
        tick(epoch, total / len(loader), model)
    return model


def draw(images, labels, found, path):
    figure, axes = plt.subplots(3, 6, figsize=(10, 5.2), layout="constrained")
    for column, (image, label, answer) in zip(axes.T, zip(images, labels, found, strict=True), strict=False):
        column[0].imshow(image.permute(1, 2, 0).clamp(0, 1))
        for axis, classes in zip(column[1:], (label, answer), strict=True):
            axis.imshow(classes, vmin=0, vmax=len(CLASSES) - 1, cmap="viridis", interpolation="nearest")
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle("the images, what is there, and what is found")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller backbone, fewer images and epochs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    count, epochs, goal = (320, 3, 0.5) if options.quick else (1000, 5, 0.9)

    start = time.perf_counter()
    torch.manual_seed(0)
    images, labels, _ = drawn_shapes(count, SIZE, seed=0)
    unseen, there, _ = drawn_shapes(200, SIZE, seed=1)
    depth = fl.models.ResNetConfig((1, 1, 1, 1), bottleneck=False) if options.quick else 18
    model = fl.models.UNet(fl.models.ResNet(depth), nclasses=len(CLASSES))
    print(f"{sum(x.numel() for x in fl.trainables(model)):,} parameters")

    def tick(epoch, value, model):
        each = shares(labelled(model, unseen), there)
        print(f"epoch {epoch + 1}: loss {value:.3f}, mean IoU {sum(each) / len(each):.3f}")

    model = train(model, (images, labels), epochs, tick)
    found = labelled(model, unseen)
    each = shares(found, there)
    for name, share in zip(CLASSES, each, strict=True):
        print(f"{name}: IoU {share:.3f}, Dice {2 * share / (1 + share):.3f}")
    reached = sum(each) / len(each)
    print(f"mean IoU {reached:.3f} on {len(unseen)} unseen images, {time.perf_counter() - start:.0f} s")
    draw(unseen, there, found, options.out / "segmentation.png")
    print(f"images and labels are drawn in {options.out}/segmentation.png")
    if reached < goal:
        raise SystemExit(f"expected a mean intersection over union of at least {goal}")


if __name__ == "__main__":
    main()
