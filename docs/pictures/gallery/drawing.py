"""The pictures of the section "Networks that draw", each a function of its example's module."""

from __future__ import annotations

import torch
from gallery.card import show, tiles

import fluxlike as fl


def vae(example):
    (x, _), (x_test, _) = example.digits()
    x, x_test = (example.CELLS * images.flatten(1) for images in (x, x_test))
    to_train, to_draw = fl.Key(0).split(2)
    return _rows(example.pictures(example.train(x, 40, to_train), x_test, to_draw), 8)


def _rows(rows, columns):
    """Named rows of images."""
    figure, axes = tiles(len(rows), columns)
    for row, (name, images) in zip(axes, rows.items(), strict=True):
        row[0].set_ylabel(name.replace("reconstructed", "recon-\nstructed").replace("drawn too", ""))
        for axis, image in zip(row, images, strict=False):
            show(axis, image)
    return figure


def gan(example):
    (images, _), _ = example.digits()
    to_train, to_draw = fl.Key(0).split(2)
    model = example.train(images, 2000, to_train)
    with torch.no_grad(), fl.seeded(to_draw):
        drawn = (example.generate(model, 40) + 1) / 2
    figure, axes = tiles(5, 8)
    for axis, image in zip(axes.flat, drawn, strict=True):
        show(axis, image)
    return figure


def diffusion(example):
    """What the model is given on the way, and the digits that come of it."""
    (images, _), _ = example.digits()
    to_train, to_draw = fl.Key(0).split(2)
    model, given = example.train(images, 1500, to_train), []

    def watched(x, t):
        given.append(((x + 1) / 2).clamp(0, 1))
        return model(x, t)

    drawn = example.sample(watched, 5, to_draw)
    steps = (0, 50, 70, 80, 90, 96)
    figure, axes = tiles(5, len(steps) + 1)
    for column, images in zip(axes.T, [*(given[step] for step in steps), drawn], strict=True):
        for axis, image in zip(column, images, strict=True):
            show(axis, image)
    axes[0, 0].set_title("noise")
    axes[0, -1].set_title("digits")
    return figure
