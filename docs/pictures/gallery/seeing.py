"""The pictures of the section "Networks that see", each a function of its example's module."""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from pathlib import Path

import torch
from gallery.card import BLUE, COLOURS, GREY, RED, plot, said, show, tiles
from matplotlib.colors import ListedColormap

import fluxlike as fl


def lenet(example):
    data, held_out = example.digits()
    figure, axis = plot(xlabel="epoch", ylabel="held-out errors (%)", xticks=(5, 10, 15), ylim=(0, 12))
    for name, model in (("LeNet-5", example.lenet5()), ("one hidden layer", example.mlp())):
        with contextlib.redirect_stdout(io.StringIO()):
            history = example.train(model, data, held_out, 15).history
        accuracies = history["validation", "accuracy"]
        axis.plot(range(1, 16), [100 * (1 - a) for a in accuracies], label=name)
    axis.legend()
    return figure


def vgg(example):
    with tempfile.TemporaryDirectory() as folder:
        example.write_cifar(Path(folder), 200)
        splits = (
            example.loader(folder, "train", batch_size=32, shuffle=True, partial=False),
            example.loader(folder, "test", batch_size=100),
        )
        model = example.train(example.network(None), splits, 6, 3e-3).model
        images, labels = fl.data.CIFAR10(folder, "test")
        x, _ = next(iter(splits[1]))
    kinds = list(example.KINDS)
    return _read(images[:8].float() / 255, fl.onecold(model(x[:8])), labels[:8], kinds)


def _read(images, found, labels, names):
    """Images with what each is taken for, and a cross where it is something else."""
    figure, axes = tiles(2, 4)
    for axis, image, kind, label in zip(axes.flat, images, found, labels, strict=True):
        show(axis, image)
        right = kind == label
        axis.set_title(names[kind] if right else f"✗ {names[kind]}", color=GREY if right else RED)
    return figure


def convmixer(example):
    data, (x, y) = example.digits()
    config = fl.models.ConvMixerConfig(depth=4, channels=48, kernel_size=5, patch_size=1)
    model = example.train(fl.models.ConvMixer(config, inchannels=1, nclasses=10), data, 6, fl.Key(0))
    first = torch.arange(len(y) - 1)[y[:-1] != y[1:]][::2][:4]  # each beside another digit
    second, shares = first + 1, torch.tensor([0.65, 0.6, 0.55, 0.5])
    mixed = torch.lerp(x[second], x[first], shares.view(-1, 1, 1, 1))
    told = fl.softmax(model(mixed))
    figure, axes = tiles(2, 4)
    for (above, below), image, p, *pair in zip(axes.T, mixed, told, y[first], y[second], strict=True):
        show(above, image)
        above.set_title(f"{pair[0]} and {pair[1]}")
        below.bar(range(10), p, color=[BLUE if digit in pair else GREY for digit in range(10)])
        below.set(ylim=(0, 1), xticks=sorted(int(digit) for digit in pair))
        below.tick_params(length=0)
    axes[1, 0].set_ylabel("probability")
    return figure


def spatial_transformer(example):
    data, (x, _) = example.digits()
    model = fl.Chain(example.SpatialTransformer(), example.reader(example.SMALL))
    to_train, to_test = fl.Key(0).split(2)
    model = example.train(model, data, 40, to_train)
    with fl.seeded(to_test):
        x = example.distorted(x[:5])
    figure, axes = tiles(2, 5)
    for row, images, name in zip(axes, (x, model[0](x)), ("given", "looked at"), strict=True):
        row[0].set_ylabel(name)
        for axis, image in zip(row, images, strict=True):
            show(axis, image)
    return figure


def finetune(example):
    with tempfile.TemporaryDirectory() as folder:
        example.draw_shapes(Path(folder), each=120)
        classes, (train, valid) = example.data(Path(folder), (64, 64), 16, 0)
        criterion = fl.losses.logitcrossentropy
        learner = fl.Learner(example.resnet18(3), train, fl.Adam(1e-3), criterion, progress=False)
        model = fl.fit_one_cycle(learner, 4, 1e-3).model
        x, y = (torch.cat(parts) for parts in zip(*valid, strict=True))
    some = torch.randperm(len(y))[:8]
    mean, deviation = (torch.tensor(c).view(3, 1, 1) for c in (fl.data.IMAGENET_MEAN, fl.data.IMAGENET_STD))
    return _read(mean + deviation * x[some], fl.onecold(model(x[some])), y[some], classes)


def transfer_learning(example):
    pairs = re.findall(r"new digit: ([\d.]+)%, from scratch ([\d.]+)%", said(example, "--quick"))
    _, (images, labels) = example.digits()
    (shots, _), _ = example.few(example.scattered(images), labels)
    figure, axes = tiles(3, 9)
    for line, row in zip(axes, shots.view(3, 5, 1, 32, 32), strict=True):
        for axis, image in zip(line, row, strict=False):
            show(axis, image, vmin=-0.5, vmax=2)
    for axis in axes[:, 5:].flat:
        axis.remove()
    bars = figure.add_subplot(axes[0, 0].get_gridspec()[:, 5:])
    backbone, scratch = (sum(map(float, column)) / len(pairs) for column in zip(*pairs, strict=True))
    bars.bar(("new", "trained"), (scratch, backbone), color=(GREY, BLUE))
    bars.set(ylim=(0, 100), title="others read (%)", xlabel="backbone")
    return figure


def segmentation(example):
    images, labels, _ = example.drawn_shapes(500, example.SIZE, seed=0)
    unseen, there, _ = example.drawn_shapes(200, example.SIZE, seed=1)
    config = fl.models.ResNetConfig((1, 1, 1, 1), bottleneck=False)
    model = fl.models.UNet(fl.models.ResNet(config), nclasses=len(example.CLASSES))
    model = example.train(model, (images, labels), 4, lambda *_: None)
    found = example.labelled(model, unseen[:4])
    colours = {"cmap": ListedColormap(["#303030", *COLOURS[:3]]), "vmin": 0, "vmax": 3}
    figure, axes = tiles(3, 4)
    for row, name in zip(axes, ("image", "true", "found"), strict=True):
        row[0].set_ylabel(name)
    for column, image, *masks in zip(axes.T, unseen, there, found, strict=False):
        show(column[0], image)
        for axis, mask in zip(column[1:], masks, strict=True):
            axis.imshow(mask, interpolation="nearest", **colours)
    return figure


def detector(example):
    images, _, objects = example.drawn_shapes(1000, example.SIZE, seed=0)
    unseen, _, _ = example.drawn_shapes(200, example.SIZE, seed=1)
    model = fl.models.YOLO(example.backbone(), nclasses=3, channels=64, strides=(8, 16))
    model = example.train(model, (images, fl.models.padded_objects(objects)), 10, lambda *_: None)
    figure, axes = tiles(2, 3)
    for axis, image, found in zip(
        axes.flat, unseen, fl.models.detect(model, unseen[:6], score=0.4), strict=False
    ):
        show(axis, image, extent=(0, example.SIZE, example.SIZE, 0))
        for box, score, kind in zip(*(part.tolist() for part in found), strict=True):
            axis.add_patch(example.rectangle(box, color=COLOURS[kind], linewidth=2))
            axis.text(box[0], box[1] - 1, f"{score:.0%}", color=COLOURS[kind], fontsize=11)
    for kind, name in enumerate(example.NAMES):
        figure.text(0.18 + 0.27 * kind, 0.01, name, color=COLOURS[kind])
    figure.get_layout_engine().set(rect=(0, 0.08, 1, 0.92))
    return figure
