"""A recurrent network that reads Python's own documentation, and writes more of it, letter by letter.

    python examples/char_rnn.py            eight passes through the text, about a minute
    python examples/char_rnn.py --quick    a part of one

After Karpathy 2015, "The unreasonable effectiveness of recurrent neural networks": many places of the text
are read side by side; a step reads 64 letters from each, and the state of the LSTM goes on to the next step,
while the gradient ends where the step began. The text ships with Python: what `help("for")` shows.
"""

from __future__ import annotations

import argparse
import math
from pydoc_data.topics import topics

import torch
from torch.distributions import Categorical

import fluxlike as fl

STREAMS, LENGTH, HIDDEN = 32, 64, 256


def data():
    """The text as numbers, for training and held out, and the letters that they stand for."""
    text = "\n\n".join(topics.values())
    letters = sorted(set(text))
    codes = torch.tensor([letters.index(c) for c in text])
    return codes[: -len(codes) // 10], codes[-len(codes) // 10 :], letters


def network(letters):
    return {
        "embed": fl.Embedding(letters, 64),
        "lstm": fl.LSTM(64, HIDDEN),
        "head": fl.Dense(HIDDEN, letters),
    }


def read(model, x, state=None):
    """Logits of the letter that follows each of x, and the state after the last."""
    x = model["embed"](x)
    h, state = model["lstm"](x, model["lstm"].initial_state(x) if state is None else state)
    return model["head"](h), state


def loss(model, x, y, state):
    logits, state = read(model, x, state)
    return fl.losses.logitcrossentropy(logits.flatten(0, 1), y.flatten()), state


def bits_per_letter(model, codes):
    """What the model needs to tell a text that it has not seen."""
    return loss(model, codes[None, :-1], codes[None, 1:], None)[0].item() / math.log(2)


def written(model, letters, start, count, key):
    """The start and more letters, each drawn from what the model says after those before."""
    codes, state = [letters.index(c) for c in start], None
    with fl.seeded(key):
        x = torch.tensor([codes])
        for _ in range(count):
            logits, state = read(model, x, state)
            x = torch.multinomial((logits[:, -1] / 0.7).softmax(-1), 1)
            codes.append(x.item())
    return "".join(letters[c] for c in codes)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of one pass")
    steps, goal = (100, 4.0) if parser.parse_args().quick else (1632, 2.0)

    torch.manual_seed(0)
    codes, held_out, letters = data()
    model = network(len(letters))
    rule = fl.Scheduled(fl.Adam(), lr=fl.schedules.OneCycle(steps, 1e-2))
    state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(1.0), rule), model)

    streams = codes[: len(codes) // STREAMS * STREAMS].reshape(STREAMS, -1)
    starts = range(0, streams.shape[1] - LENGTH, LENGTH)
    memory = None
    for step in range(steps):
        at = starts[step % len(starts)]
        memory = None if at == 0 else memory  # the streams begin anew
        x, y = streams[:, at : at + LENGTH], streams[:, at + 1 : at + 1 + LENGTH]
        (_, memory), grads = fl.withgradient(loss, model, x, y, memory)
        model, state = fl.update(state, model, grads)
        if (step + 1) % (steps // 6) == 0:
            print(f"step {step + 1:4}: {bits_per_letter(model, held_out[:20000]):.2f} bits a held-out letter")

    bits = bits_per_letter(model, held_out)
    baseline = Categorical(probs=codes.bincount().float()).entropy().item() / math.log(2)
    print(f"{bits:.2f} bits a letter; by the frequencies of letters alone it would take {baseline:.2f}")
    print(written(model, letters, 'The "', 300, fl.Key(0)))
    if not bits < goal:
        raise SystemExit(f"expected fewer than {goal} bits a letter")


if __name__ == "__main__":
    main()
