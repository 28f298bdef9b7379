"""A small VGG with batch normalisation and dropout on CIFAR-10, or on pictures in its form.

    python examples/vgg.py                                     pictures that it draws, half a minute
    python examples/vgg.py --quick                             fewer pictures, half the epochs
    python examples/vgg.py --data cifar-10-batches-bin         CIFAR-10, from its binary version
    python examples/vgg.py --data cifar-10-batches-bin --depth 16 --epochs 60

After Simonyan & Zisserman 2014, arXiv 1409.1556: stages of 3 × 3 convolutions, each half as large as the
one before. Without `--data` it draws ten kinds of shapes and textures, turned, scaled, moved and coloured
at random, and writes them to files of CIFAR's format, which `fl.data.CIFAR10` reads back. The learning
curve is drawn to a PNG file.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch

import fluxlike as fl

#: Where a picture is of its front colour, by coordinates of which the shapes fill -1 to 1.
KINDS = {
    "disc": lambda u, v: u**2 + v**2 < 1,
    "ring": lambda u, v: (u**2 + v**2 - 0.65).abs() < 0.35,
    "square": lambda u, v: torch.maximum(u.abs(), v.abs()) < 0.85,
    "triangle": lambda u, v: (v > -0.7) & (v + 1.73 * u.abs() < 1),
    "cross": lambda u, v: (torch.minimum(u.abs(), v.abs()) < 0.3) & (torch.maximum(u.abs(), v.abs()) < 1),
    "half": lambda u, v: u > 0,
    "stripes": lambda u, v: (6 * u).sin() > 0,
    "circles": lambda u, v: (8 * (u**2 + v**2).sqrt()).sin() > 0,
    "chequers": lambda u, v: (6 * u).sin() * (6 * v).sin() > 0,
    "dots": lambda u, v: (7 * u).cos() + (7 * v).cos() > 0.8,
}


def pictures(count):
    """Pictures in uint8 of shape (N, 3, 32, 32), and their kinds."""
    labels = torch.randint(len(KINDS), (count,))
    axis = torch.linspace(-1, 1, 32)
    y = axis.view(32, 1) + 0.5 * torch.rand(count, 1, 1) - 0.25
    x = axis + 0.5 * torch.rand(count, 1, 1) - 0.25
    angle, scale = 2 * math.pi * torch.rand(count, 1, 1), 0.5 + 0.4 * torch.rand(count, 1, 1)
    u, v = (angle.cos() * x + angle.sin() * y) / scale, (angle.cos() * y - angle.sin() * x) / scale
    front = torch.stack([kind(u, v) for kind in KINDS.values()])[labels, torch.arange(count)].unsqueeze(1)
    dark, light = 0.45 * torch.rand(count, 3, 1, 1), 1 - 0.45 * torch.rand(count, 3, 1, 1)
    inverted = torch.rand(count, 1, 1, 1) < 0.5
    images = torch.where(front ^ inverted, dark, light) + 0.08 * torch.randn(count, 3, 32, 32)
    return (255 * images.clamp(0, 1)).byte(), labels


def write_cifar(folder, count):
    """Five files of training and one to test, as CIFAR-10's: a byte for the label, 3072 for the pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images, labels = pictures(count)
        records = torch.cat((labels.byte().unsqueeze(1), images.flatten(1)), 1)
        (folder / f"{name}.bin").write_bytes(records.numpy().tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(KINDS) + "\n")


def network(depth):
    """The zoo's VGG, and a classifier of what 32 × 32 pixels come down to."""
    config = depth or fl.models.VGGConfig(((1, 16), (1, 32), (2, 64), (2, 64)))
    classifier = fl.Chain(
        fl.flatten, fl.Dropout(0.3), fl.Dense(fl.auto, 128, fl.relu), fl.Dropout(0.3), fl.Dense(128, 10)
    )
    model = fl.models.Classifier(fl.models.VGG(config, batchnorm=True).backbone, classifier)
    return fl.autosize(model, (1, 3, 32, 32))


def loader(root, split, **options):
    """Batches of images as networks take them; they are kept as the bytes that they are in the file."""
    normalise = fl.data.Normalise()

    def as_input(batch):
        images, labels = batch
        return normalise(images.float() / 255), labels

    return fl.DataLoader(fl.data.CIFAR10(root, split), transform=as_input, **options)


def train(model, loaders, epochs, lr):
    """A learner, trained by one cycle of Adam's rate."""
    learner = fl.Learner(
        model, loaders, fl.Adam(lr), fl.losses.logitcrossentropy,
        metrics=[fl.metrics.accuracy],
        callbacks=[fl.callbacks.ToDevice("cuda" if torch.cuda.is_available() else "cpu")],
    )  # fmt: skip
    return fl.fit_one_cycle(learner, epochs, lr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of CIFAR-10 (default: pictures that it draws)")
    parser.add_argument("--depth", type=int, help="11, 13, 16 or 19 (default: a smaller network)")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--lr", type=float, default=3e-3, help="at the peak of the cycle")
    parser.add_argument("--quick", action="store_true", help="fewer pictures, half the epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    epochs, goal, count = (6, 0.65, 200) if options.quick else (options.epochs, 0.95, 600)

    torch.manual_seed(options.seed)
    root = options.data
    if root is None:
        root = options.out / "pictures"
        write_cifar(root, count)
    classes = fl.data.read_class_names(root / "batches.meta.txt")
    loaders = (
        loader(root, "train", batch_size=32, shuffle=True, partial=False),
        loader(root, "test", batch_size=100),
    )
    learner = train(network(options.depth), loaders, epochs, options.lr)

    learner.history.plot().savefig(options.out / "vgg.png")
    mistakes = fl.interpret(learner, classes=classes)
    mistakes.plot_confusion_matrix().savefig(options.out / "vgg_confusion.png")
    found = learner.history.last("validation", "accuracy")
    print(f"{found:.1%} of {len(mistakes.true)} test images are told rightly")
    print(f"curve and confusions are in {options.out}/vgg.png and vgg_confusion.png")
    if options.data is None and found < goal:
        raise SystemExit(f"expected at least {goal:.0%}")


if __name__ == "__main__":
    main()
