"""A detector finds circles, squares and triangles in drawn images.

    python examples/detector.py            2,400 images, ten epochs, about a minute on one core
    python examples/detector.py --quick    640 images, eight epochs, some ten seconds

YOLO stands over any backbone; this one is a small Chain of residual blocks. The objects of all images are one
tensor, padded, so that every step has the same shapes. What it finds in images that it has not seen is
measured as mean average precision and drawn to a PNG file, beside what is there.
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
COLOURS = ("tab:red", "tab:cyan", "tab:orange")


def backbone():
    def block(channels):
        branch = fl.Chain(
            fl.models.conv_norm(3, channels, channels),
            fl.models.conv_norm(3, channels, channels, fl.identity),
        )
        return fl.models.Residual(branch, activation=fl.relu)

    def stage(inputs, channels):
        return fl.Chain(fl.models.conv_norm(3, inputs, channels, stride=2), block(channels))

    return fl.Chain(fl.models.conv_norm(3, 3, 16, stride=2), stage(16, 32), stage(32, 64), stage(64, 96))


def loss(model, images, targets):
    return fl.models.detection_loss(model(images), targets)


def train(model, data, epochs, tick):
    """AdamW, with a rate that rises over the first steps and falls as a cosine."""
    state = fl.setup(fl.AdamW(3e-3), model)
    loader = fl.DataLoader(data, batch_size=32, shuffle=True)
    step, steps = 0, epochs * len(loader)
    for epoch in range(epochs):
        total = 0.0
        for images, targets in loader:
            step += 1
            rate = 3e-3 * min(1, step / 50) * (1 + math.cos(math.pi * (step - 1) / steps)) / 2
            state = fl.adjust(state, rate)
            value, grads = fl.withgradient(loss, model, images, targets)
            model, state = fl.update(state, model, grads)
            total += value.item()
        tick(epoch, total / len(loader), model)
    return model


def draw(images, detections, objects, path):
    figure, axes = plt.subplots(2, 4, figsize=(10, 5.2), layout="constrained")
    for axis, image, found, (boxes, _) in zip(axes.flat, images, detections, objects, strict=False):
        axis.imshow(image.permute(1, 2, 0).clamp(0, 1), extent=(0, SIZE, SIZE, 0))
        axis.axis("off")
        for box in boxes.tolist():
            axis.add_patch(rectangle(box, color="white", linestyle=":"))
        for box, score, kind in zip(*(x.tolist() for x in found), strict=True):
            axis.add_patch(rectangle(box, color=COLOURS[kind]))
            axis.text(box[0], box[1] - 1, f"{NAMES[kind]} {score:.0%}", color=COLOURS[kind], fontsize=7)
    figure.suptitle("found, and what is there (dotted)")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def rectangle(box, **settings):
    left, top, right, bottom = box
    return plt.Rectangle((left, top), right - left, bottom - top, fill=False, **settings)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer images and epochs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    count, epochs, goal = (640, 8, 0.4) if options.quick else (2400, 10, 0.9)

    start = time.perf_counter()
    torch.manual_seed(0)
    images, _, objects = drawn_shapes(count, SIZE, seed=0)
    unseen, _, there = drawn_shapes(200, SIZE, seed=1)
    model = fl.models.YOLO(backbone(), nclasses=len(NAMES), channels=64, strides=(8, 16))
    print(f"{sum(x.numel() for x in fl.trainables(model)):,} parameters")

    def precision(model, iou):
        each = fl.models.average_precision(fl.models.detect(model, unseen, score=0.01), there, iou=iou)
        return {NAMES[c]: value for c, value in each.items()}

    def tick(epoch, value, model):
        each = precision(model, 0.5)
        print(f"epoch {epoch + 1:2d}: loss {value:.3f}, mAP@0.5 {sum(each.values()) / len(each):.3f}")

    model = train(model, (images, fl.models.padded_objects(objects)), epochs, tick)
    at_half, strict = precision(model, 0.5), precision(model, 0.75)
    for name, value in at_half.items():
        print(f"{name}: average precision {value:.3f} at an overlap of 0.5, {strict[name]:.3f} at 0.75")
    reached = sum(at_half.values()) / len(at_half)
    print(f"mAP@0.5 {reached:.3f} on {len(unseen)} unseen images, {time.perf_counter() - start:.0f} s")
    draw(unseen, fl.models.detect(model, unseen[:8]), there, options.out / "detections.png")
    print(f"what it finds is drawn in {options.out}/detections.png")
    if reached < goal:
        raise SystemExit(f"expected a mean average precision of at least {goal}")


if __name__ == "__main__":
    main()
