"""A layer of your own: the attention of a small vision transformer, on the digits.

    python examples/vision_transformer.py            thirty epochs, about half a minute
    python examples/vision_transformer.py --quick    two epochs

A layer is any class. `functor` makes its objects trees; `children=` says which attributes take part
(here the projections), while the others (the number of heads) ride along unchanged.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import fluxlike as fl


@fl.functor(children=("to_qkv", "to_out"))
class Attention:
    """Multi-head self-attention over (N, L, C)."""

    def __init__(self, dim, heads):
        self.heads = heads
        self.to_qkv = fl.Dense(dim, 3 * dim, bias=False)
        self.to_out = fl.Dense(dim, dim)

    def __call__(self, x):
        n, length, dim = x.shape
        qkv = self.to_qkv(x).reshape(n, length, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(y.transpose(1, 2).reshape(n, length, dim))


@fl.functor
class Patches:
    """Cut images (N, 1, 8, 8) into 16 patches, embed them and add a learnt position: (N, 16, dim)."""

    def __init__(self, dim):
        self.embed = fl.Dense(4, dim)
        self.position = 0.02 * torch.randn(16, dim)

    def __call__(self, x):
        patches = F.unfold(x, kernel_size=2, stride=2).transpose(1, 2)
        return self.embed(patches) + self.position


def block(dim, heads):
    attention = fl.Chain(fl.LayerNorm(dim), Attention(dim, heads))
    mlp = fl.Chain(fl.LayerNorm(dim), fl.Dense(dim, 2 * dim, fl.gelu), fl.Dense(2 * dim, dim))
    return fl.Chain(fl.SkipConnection(attention, torch.add), fl.SkipConnection(mlp, torch.add))


def mean_of_patches(x):
    return x.mean(1)


def vision_transformer(dim=48, heads=4, depth=2):
    blocks = [block(dim, heads) for _ in range(depth)]
    return fl.Chain(Patches(dim), *blocks, fl.LayerNorm(dim), mean_of_patches, fl.Dense(dim, 10))


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x), y)


def digits():
    """Images (N, 1, 8, 8) from 0 to 1, and labels, split into training and a held-out fifth."""
    data = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return fl.splitobs((images, torch.tensor(data.target)), at=0.8, shuffle=True)


def accuracy(model, x, y):
    with torch.no_grad():
        return (fl.onecold(model(x)) == y).float().mean().item()


def train(model, data, held_out, epochs):
    state = fl.setup(fl.AdamW(3e-3), model)
    for epoch in range(epochs):
        state = fl.adjust(state, 3e-3 * (1 - epoch / epochs))
        for x, y in fl.DataLoader(data, batch_size=64, shuffle=True):
            grads = fl.gradient(loss, model, x, y)
            model, state = fl.update(state, model, grads)
        print(f"epoch {epoch + 1:2d}: {accuracy(model, *held_out):.2%} of the held-out digits")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two epochs")
    epochs, goal = (2, 0.3) if parser.parse_args().quick else (30, 0.95)

    torch.manual_seed(0)
    data, held_out = digits()
    model = vision_transformer()
    print(model)
    model = train(model, data, held_out, epochs)

    grads = fl.gradient(loss, model, *held_out)
    attention = grads.layers[1].layers[0].layer.layers[1]
    print("the gradient of an Attention has the shape of one:", attention, sep="\n")
    if accuracy(model, *held_out) < goal:
        raise SystemExit(f"expected at least {goal:.0%}")


if __name__ == "__main__":
    main()
