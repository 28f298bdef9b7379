"""An encoder, a decoder and the attention between them: dates as people write them, into the standard form.

    python examples/seq2seq.py            five hundred steps, about half a minute
    python examples/seq2seq.py --quick    fewer steps

After Bahdanau et al. 2014, arXiv 1409.0473, with the attention where Luong et al. 2015, arXiv 1508.04025,
have it: after the decoder's recurrent layer. Every tenth day is held out, in all forms, and an answer counts
only where all of its ten letters are right.
"""

from __future__ import annotations

import argparse
import random
from datetime import date

import torch
from torch.nn.utils.rnn import pad_sequence

import fluxlike as fl

FORMS = ("%d %B %Y", "%B %d, %Y", "%d.%m.%Y", "%m/%d/%Y", "%a %d %b %y", "%A, %B %d %Y")
LETTERS = " ,-./0123456789abcdefghijklmnopqrstuvwxyz^"
START, DIM = LETTERS.index("^"), 96


def pairs(count, rng, held_out):
    """Random dates from 1970 to 2068 as they are written and as they should be."""
    first, last = date(1970, 1, 1).toordinal() // 10, date(2069, 1, 1).toordinal() // 10
    for _ in range(count):
        day = date.fromordinal(10 * rng.randrange(first + 1, last) + (0 if held_out else rng.randint(1, 9)))
        yield day.strftime(rng.choice(FORMS)).lower(), day.isoformat()


def batch(count, rng, held_out=False):
    """Texts (N, L), their lengths (N,), and the answers (N, 10)."""
    texts, answers = zip(*pairs(count, rng, held_out), strict=True)
    rows, answers = ([torch.tensor([LETTERS.index(c) for c in t]) for t in ts] for ts in (texts, answers))
    return pad_sequence(rows, batch_first=True), torch.tensor([*map(len, rows)]), torch.stack(answers)


def network():
    return {
        "embed": fl.Embedding(len(LETTERS), 32),
        "encoder": fl.GRU(32, DIM // 2, bidirectional=True),
        "decoder": fl.GRU(32, DIM),
        "attention": fl.MultiHeadAttention(DIM, 1),
        "head": fl.Chain(fl.Dense(2 * DIM, DIM, fl.tanh), fl.Dense(DIM, len(LETTERS))),
    }


def decode(model, encoded, lengths, before):
    """Logits of the letter after each of those before, each of which attends the whole text."""
    h = model["decoder"](model["embed"](before))
    context = model["attention"](h, encoded, lengths=lengths)
    return model["head"](torch.cat((h, context), -1))


def encode(model, texts, lengths):
    return model["encoder"](model["embed"](texts), lengths=lengths)


def loss(model, texts, lengths, answers):
    before = torch.cat((torch.full_like(answers[:, :1], START), answers[:, :-1]), 1)
    logits = decode(model, encode(model, texts, lengths), lengths, before)
    return fl.losses.logitcrossentropy(logits.flatten(0, 1), answers.flatten())


def translate(model, texts, lengths):
    """The likeliest letter, ten times."""
    encoded, answers = encode(model, texts, lengths), torch.full((len(texts), 1), START)
    for _ in range(10):
        letter = decode(model, encoded, lengths, answers)[:, -1:].argmax(-1)
        answers = torch.cat((answers, letter), 1)
    return answers[:, 1:]


def as_text(codes):
    return "".join(LETTERS[c] for c in codes.tolist())


def train(model, steps, rng, held_out):
    texts, lengths, answers = held_out
    rule = fl.Scheduled(fl.Adam(), lr=fl.schedules.OneCycle(steps, 8e-3))
    state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(1.0), rule), model)
    for step in range(steps):
        value, grads = fl.withgradient(loss, model, *batch(64, rng))
        model, state = fl.update(state, model, grads)
        if (step + 1) % (steps // 5) == 0:
            right = (translate(model, texts, lengths) == answers).all(1).float().mean().item()
            print(f"step {step + 1:4}: loss {value.item():.3f}, {right:.1%} of the held-out dates right")
    return model, right


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    steps, goal = (150, 0.5) if parser.parse_args().quick else (500, 0.99)

    torch.manual_seed(0)
    rng = random.Random(0)
    texts, lengths, answers = batch(500, rng, held_out=True)
    model, right = train(network(), steps, rng, (texts, lengths, answers))

    for text, n, answer in zip(texts[:8], lengths, translate(model, texts, lengths), strict=False):
        print(f"  {as_text(text[:n]):28} {as_text(answer)}")
    if right < goal:
        raise SystemExit(f"expected at least {goal:.0%}")


if __name__ == "__main__":
    main()
