r"""Fine-tune a ResNet-18 on a folder of images in Imagenette's layout, with one-cycle Adam.

    python examples/finetune.py                  shapes that it draws, our own layers, a minute
    python examples/finetune.py --torchvision    the same with the model of torchvision
    python examples/finetune.py --quick          two epochs
    python examples/finetune.py --torchvision --weights resnet18-f37072fd.pth \
        --data imagenette2-320 --size 224        a trained model, another folder

The weights are those that torchvision publishes; nothing is downloaded. A run that is killed goes on where
it was if the same command is given again. Curve, confusion matrix and the worst mistakes are drawn to PNG
files.
"""

from __future__ import annotations

import argparse
import random
from itertools import pairwise
from pathlib import Path

import torch
from PIL import Image, ImageDraw

import fluxlike as fl


def draw_shapes(root, each):
    """Circles, squares and triangles of any colour, as root/train/circle/0.jpg and so on."""
    chance = random.Random(0)
    for split, count in (("train", each), ("val", each // 2)):
        for name in ("circle", "square", "triangle"):
            folder = root / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                back, front = (tuple(chance.randrange(a, a + 90) for _ in range(3)) for a in (0, 160))
                image = Image.new("RGB", (80, 64), back)
                x, y, r = chance.randrange(28, 52), chance.randrange(26, 38), chance.randrange(16, 25)
                corners = {"circle": 32, "square": 4, "triangle": 3}[name]
                ImageDraw.Draw(image).regular_polygon((x, y, r), corners, chance.randrange(360), fill=front)
                image.save(folder / f"{i}.jpg", quality=90)


def block(channels_in, channels_out, stride):
    def conv(size, first, last, stride, activation):
        layer = fl.Conv((size, size), first, last, stride=stride, pad=size // 2, bias=False)
        return fl.Chain(layer, fl.BatchNorm(last, activation))

    body = fl.Chain(
        conv(3, channels_in, channels_out, stride, fl.relu),
        conv(3, channels_out, channels_out, 1, fl.identity),
    )
    if stride == 1 and channels_in == channels_out:
        return fl.Chain(fl.SkipConnection(body, torch.add), fl.relu)
    return fl.Chain(
        fl.Parallel(torch.add, body, conv(1, channels_in, channels_out, stride, fl.identity)), fl.relu
    )


def resnet18(classes):
    """A ResNet-18 in two children, backbone and classifier (He et al., https://arxiv.org/abs/1512.03385)."""
    stem = [
        fl.Conv((7, 7), 3, 64, stride=2, pad=3, bias=False),
        fl.BatchNorm(64, fl.relu),
        fl.MaxPool((3, 3), stride=2, pad=1),
    ]
    widths = [64, 64, 64, 128, 128, 256, 256, 512, 512]
    blocks = [block(a, b, 1 + (a != b)) for a, b in pairwise(widths)]
    return fl.Chain(
        backbone=fl.Chain(*stem, *blocks, fl.GlobalMeanPool(), fl.flatten), classifier=fl.Dense(512, classes)
    )


def torchvisions(classes, weights):
    """torchvision's ResNet-18 with another last layer, and published weights if there is a file of them."""
    import torchvision

    model = fl.from_torch(torchvision.models.resnet18())
    if weights is not None:
        model = fl.load_checkpoint(weights, model)
    return fl.at(model, ".fc").set(fl.Dense(512, classes))


def data(root, size, batch_size, workers):
    normalise = fl.data.Normalise(fl.data.IMAGENET_MEAN, fl.data.IMAGENET_STD)
    augment = fl.Chain(
        fl.data.RandomResizedCrop(size, scale=(0.5, 1.0)), fl.data.RandomHorizontalFlip(), normalise
    )
    train = fl.data.ImageFolder(root / "train", transform=augment)
    valid = fl.data.ImageFolder(root / "val", size=size, transform=normalise)
    loaders = (
        fl.DataLoader(train, batch_size, shuffle=True, partial=False, workers=workers),
        fl.DataLoader(valid, batch_size, workers=workers),
    )
    return train.classes, loaders


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder with train/ and val/ (default: drawn shapes)")
    parser.add_argument("--torchvision", action="store_true", help="its model instead of our own layers")
    parser.add_argument("--weights", type=Path, help="a checkpoint of torchvision's model")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: 64)")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--lr", type=float, default=1e-3, help="at the peak of the cycle")
    parser.add_argument("--workers", type=int, default=0, help="processes that read images")
    parser.add_argument("--jit", action="store_true", help="compile the step")
    parser.add_argument("--quick", action="store_true", help="two epochs on few images")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "finetune")
    options = parser.parse_args()
    root, epochs = options.data, 2 if options.quick else options.epochs
    if root is None:
        root = options.out / "shapes"
        draw_shapes(root, each=40 if options.quick else 160)

    torch.manual_seed(0)
    classes, loaders = data(root, (options.size, options.size), 16, options.workers)
    model = torchvisions(len(classes), options.weights) if options.torchvision else resnet18(len(classes))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    learner = fl.Learner(
        model, loaders, fl.Adam(options.lr), fl.losses.logitcrossentropy,
        metrics=[fl.metrics.accuracy],
        callbacks=[
            fl.callbacks.ToDevice(device),
            fl.callbacks.Checkpointer(options.out / "checkpoints", by="loss"),
        ],
        jit=options.jit,
    )  # fmt: skip
    learner = fl.fit_one_cycle(learner, epochs, options.lr, resume=True)

    learner.history.plot().savefig(options.out / "curve.png")
    mistakes = fl.interpret(learner, classes=classes)
    mistakes.plot_confusion_matrix().savefig(options.out / "confusion.png")
    mistakes.show_top_losses(9, denormalise=(fl.data.IMAGENET_MEAN, fl.data.IMAGENET_STD)).savefig(
        options.out / "mistakes.png"
    )
    fl.save(options.out / "model.safetensors", learner.model)
    accuracy = learner.history.last("validation", "accuracy")
    print(f"{accuracy:.1%} of {len(mistakes.true)} held-out images read right")
    print(f"model, curve and mistakes are in {options.out}")
    if root == options.out / "shapes" and accuracy < (0.35 if options.quick else 0.9):
        raise SystemExit("expected more")


if __name__ == "__main__":
    main()
