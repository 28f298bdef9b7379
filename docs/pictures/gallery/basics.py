"""The pictures of the section "Basics", each a function of its example's module."""

from __future__ import annotations

import math
import re
import tempfile

import torch
from gallery.card import BLUE, GREY, ORANGE, RED, plot, said, show, tiles
from matplotlib.ticker import NullFormatter

import fluxlike as fl


def iris(example):
    data, (x, y), species = example.flowers(seed=0)
    model = example.train(example.MODELS["one hidden layer"](), *data, 100)
    wrong = fl.onecold(model(x)) != y
    figure, axis = plot(xlabel="length of petals", ylabel="width of petals", xticks=[], yticks=[])
    for kind, name in enumerate(species):
        axis.plot(*x[y == kind, 2:].T, "o", label=name)
    axis.plot(*x[wrong, 2:].T, "o", ms=14, mfc="none", mec=RED, label="mistaken")
    axis.legend(handletextpad=0.1)
    return figure


def digits(example):
    figure, axis = plot(xlabel="epoch", ylabel="held-out accuracy (%)", ylim=(90, 100))
    for seed in range(2):
        torch.manual_seed(seed)
        data, held_out = example.digits()
        _, _, curve = example.train(example.network(), data, held_out, 10, lambda point: None)
        axis.plot(range(1, 11), [100 * accuracy for _, accuracy in curve], "o-", label=f"seed {seed}")
    axis.legend(loc="lower right")
    return figure


def vision_transformer(example):
    """How much of the first block's attention each patch gets from all the others, for each head."""
    data, held_out = example.digits()
    model = example.train(example.vision_transformer(), data, held_out, 15)
    norm, attention = model.layers[1].layers[0].layer.layers
    x = held_out[0][:4]
    q, k, _ = attention.to_qkv(norm(model[0](x))).view(4, 16, 3, attention.heads, -1).permute(2, 0, 3, 1, 4)
    weights = (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1).mean(2)  # digit, head, patch
    figure, axes = tiles(4, 5)
    for row, image, heads in zip(axes, x, weights.view(4, -1, 1, 4, 4), strict=True):
        show(row[0], image)
        for axis, head in zip(row[1:], heads, strict=True):
            show(axis, head, cmap="viridis", vmin=None, vmax=None)
    for axis, title in zip(axes[0], ("digit", "head 1", "2", "3", "4"), strict=True):
        axis.set_title(title)
    return figure


def many_devices(example):
    def losses(*options, devices=1):
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(devices))
        found = re.findall(r"epoch +(\d+): loss ([\d.]+)", said(example, *options, launcher=launcher))
        return zip(*((int(epoch), float(loss)) for epoch, loss in found), strict=True)

    figure, axis = plot(xlabel="epoch", ylabel="training loss", yscale="log")
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.plot(*losses(), color=GREY, label="one device, at one go")
    with tempfile.TemporaryDirectory() as folder:
        axis.plot(*losses("--folder", folder, "--quick"), "o", color=ORANGE, label="one device, ended")
        axis.plot(*losses("--folder", folder, devices=2), "o", color=BLUE, label="two go on")
    axis.legend()
    return figure


def surgery(example):
    output = said(example)
    bars = {
        "0 to 4, first head": ("with the first head", GREY),
        "5 to 9, new head": ("new head alone", ORANGE),
        "5 to 9, fine-tuned": ("fine-tuned", BLUE),
    }
    figure, axis = plot(xticks=[], xlim=(0, 118))
    for name, (words, colour) in bars.items():
        found = float(re.search(rf"{words}: ([\d.]+)%", output)[1])
        axis.barh(name, found, color=colour)
        axis.text(found + 2, name, f"{found:.0f}%", va="center")
    axis.invert_yaxis()
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(left=False)
    return figure
