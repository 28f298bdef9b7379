"""A ConvMixer reads the digits: Trockman & Kolter 2022, "Patches are all you need?", arXiv 2201.09792.

    python examples/convmixer.py            thirty epochs, half a minute
    python examples/convmixer.py --quick    four epochs

One convolution embeds patches; blocks then mix places, channel by channel, with a large kernel and a way
around it, and channels, place by place. The network is the zoo's in a size of one's own, trained by AdamW
with a learning rate that rises and falls, on mixtures of two digits each (MixUp), as in the paper. The
digits that it misreads are drawn to a PNG file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from digits import accuracy, digits, draw_misread, loss

import fluxlike as fl


def train(model, data, epochs, key):
    """The model after some epochs on mixtures: images weighted and added, and labels alike."""
    mix = fl.data.MixUp(0.2, classes=10)
    loader = fl.DataLoader(data, batch_size=64, shuffle=True, key=key, transform=mix)
    rate = fl.schedules.OneCycle(epochs * len(loader), 1e-2)
    rule = fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Scheduled(fl.AdamW(weight_decay=1e-2), lr=rate))
    state = fl.setup(rule, model)
    for epoch in range(epochs):
        total = 0.0
        for x, y in loader:
            value, grads = fl.withgradient(loss, model, x, y)
            model, state = fl.update(state, model, grads)
            total += value.item()
        print(f"epoch {epoch + 1:2}: loss on mixtures {total / len(loader):.3f}")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="four epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    epochs, goal = (4, 0.9) if options.quick else (30, 0.98)

    torch.manual_seed(options.seed)
    data, held_out = digits()
    config = fl.models.ConvMixerConfig(depth=4, channels=48, kernel_size=5, patch_size=1)
    model = fl.models.ConvMixer(config, inchannels=1, nclasses=10)
    print(model)
    model = train(model, data, epochs, fl.Key(options.seed))

    found = accuracy(model, held_out)
    misread = draw_misread(model, held_out, options.out / "convmixer.png")
    print(f"{found:.2%} of {len(held_out[1])} held-out digits read right")
    print(f"{misread} that are misread are in {options.out}/convmixer.png")
    if found < goal:
        raise SystemExit(f"expected at least {goal:.0%}")


if __name__ == "__main__":
    main()
