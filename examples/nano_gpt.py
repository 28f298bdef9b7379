"""A small GPT that learns to write Python from the standard library, letter by letter.

    python examples/nano_gpt.py            two thousand steps, a few minutes
    python examples/nano_gpt.py --quick    a smaller model, fewer steps

After Karpathy's nanoGPT, and Radford et al. 2019. The whole step, gradient, clipping and AdamW, is compiled
to one graph that writes over the memory of the old model.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from pathlib import Path

import torch
from torch.distributions import Categorical

import fluxlike as fl

BATCH, CONTEXT = 16, 64


def data():
    """Sources of the standard library as numbers, for training and held out, and what they stand for."""
    sources = [path.read_text() for path in sorted(Path(os.__file__).parent.glob("[a-d]*.py"))]
    text = "\n".join(source for source in sources if source.isascii())
    letters = sorted(set(text))
    number = {c: i for i, c in enumerate(letters)}
    codes = torch.tensor([number[c] for c in text])
    return codes[: -len(codes) // 10], codes[-len(codes) // 10 :], letters


def windows(codes, starts):
    """Pieces of a text, and the letter that follows each of theirs."""
    pieces = codes[starts[:, None] + torch.arange(CONTEXT + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def loss(model, x, y):
    return fl.losses.logitcrossentropy(model(x).flatten(0, 1), y.flatten())


@fl.jit(donate=(0, 1))
def train_step(model, state, x, y):
    grads = fl.gradient(loss, model, x, y)
    return fl.update(state, model, grads)


def train(model, codes, held_out, steps, lr):
    """The model after some steps, and the bits that it needs for a held-out letter."""
    rule = fl.AdamW(betas=(0.9, 0.99), weight_decay=0.1)
    rule = fl.Scheduled(rule, lr=fl.schedules.OneCycle(steps, lr))
    state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(1.0), rule), model)

    x_test, y_test = windows(held_out, torch.arange(0, len(held_out) - CONTEXT - 1, CONTEXT)[:500])
    start = time.perf_counter()
    for step in range(steps):
        x, y = windows(codes, torch.randint(len(codes) - CONTEXT, (BATCH,)))
        model, state = train_step(model, state, x, y)
        if (step + 1) % (steps // 5) == 0:
            bits = loss(model, x_test, y_test).item() / math.log(2)
            seconds = time.perf_counter() - start
            print(f"step {step + 1:4}: {bits:.2f} bits a held-out letter, after {seconds:.0f} s")
    return model, bits


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a smaller model, fewer steps")
    quick = parser.parse_args().quick
    steps, goal, depth, dim = (200, 3.6, 1, 64) if quick else (2000, 2.3, 4, 128)

    torch.manual_seed(0)
    codes, held_out, letters = data()
    model = fl.models.GPT(
        fl.models.GPTConfig(depth=depth, dim=dim, num_heads=4, vocabulary=len(letters), context=CONTEXT),
        dropout=0.0,  # it sees each letter a few times at most
    )
    print(model)
    model, bits = train(model, codes, held_out, steps, 1e-2 if quick else 4e-3)

    baseline = Categorical(probs=codes.bincount().float()).entropy().item() / math.log(2)
    print(f"by the frequencies of letters alone it would take {baseline:.2f}")
    starts = torch.tensor([[letters.index(c) for c in start] for start in ("class ", "    if", "import")])
    for text in fl.models.generate(model, starts, CONTEXT - 6, temperature=0.7, top_k=20, key=fl.Key(0)):
        print("-" * CONTEXT, "".join(letters[c] for c in text.tolist()), sep="\n")
    if not bits < goal:
        raise SystemExit(f"expected fewer than {goal} bits a letter")


if __name__ == "__main__":
    main()
