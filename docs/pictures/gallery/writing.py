"""The pictures of the section "Networks that write", each a function of its example's module."""

from __future__ import annotations

import random
import textwrap

import torch
from gallery.card import BLUE, GREY, ORANGE, page, plot, said

import fluxlike as fl

LINES, COLUMNS = 10, 44


def char_rnn(example):
    written = said(example).split("by the frequencies")[1].split("\n", 1)[1]
    lines = [line for text in written.splitlines() for line in textwrap.wrap(text, COLUMNS)]
    return page("\n".join(lines[:LINES]), "written letter by letter:")


def nano_gpt(example):
    codes, held_out, letters = example.data()
    config = fl.models.GPTConfig(
        depth=2, dim=96, num_heads=4, vocabulary=len(letters), context=example.CONTEXT
    )
    model, _ = example.train(fl.models.GPT(config, dropout=0.0), codes, held_out, 600, 6e-3)
    starts = torch.tensor([[letters.index(c) for c in start] for start in ("class ", "    if", "import")])
    written = fl.models.generate(model, starts, example.CONTEXT - 6, temperature=0.7, top_k=20, key=fl.Key(0))
    texts = ("".join(letters[c] for c in text).rstrip() for text in written.tolist())
    lines = "\n\n".join(texts).splitlines()
    return page("\n".join(line[:COLUMNS] for line in lines[:LINES]), "written letter by letter:")


def seq2seq(example):
    rng = random.Random(0)
    texts, lengths, answers = example.batch(500, rng, held_out=True)
    model, _ = example.train(example.network(), 300, rng, (texts, lengths, answers))
    text, answer = texts[:1, : lengths[0]], example.translate(model, texts[:1], lengths[:1])
    before = torch.cat((torch.full((1, 1), example.START), answer[:, :-1]), 1)
    h = model["decoder"](model["embed"](before))
    weights = model["attention"].attention_weights(h, example.encode(model, text, lengths[:1]))
    figure, axis = plot()
    axis.imshow(weights.squeeze(), cmap="Blues", aspect="auto")
    for axis_of, codes in ((axis.xaxis, text[0]), (axis.yaxis, answer[0])):
        axis_of.set_ticks(range(len(codes)), example.as_text(codes), family="monospace")
    axis.tick_params(length=0)
    axis.set_title("where each letter looks")
    return figure


def recursive(example):
    rng = random.Random(0)
    model = example.train(example.network(), 150, rng, [example.tree(8, rng) for _ in range(100)])
    expression = ("or", ("and", ("not", "false"), ("xor", "true", "false")), ("not", ("or", "false", "true")))
    logits, values = example.read(model, [expression])
    figure, axis = plot(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    told, leaves = iter(logits.argmax(1).tolist()), iter(range(len(values)))

    def draw(part, depth):
        """Parts first, as the network reads them; the place of the root."""
        word, *parts = [part] if isinstance(part, str) else part
        places = [draw(inner, depth + 1) for inner in parts]
        place = sum(places) / len(places) if places else next(leaves)
        for below in places:
            axis.plot((place, below), (-depth, -depth - 1), color=GREY, lw=1.5)
        box = {"fc": BLUE if next(told) else ORANGE, "ec": "none"}
        axis.text(place, -depth, word, ha="center", va="center", color="white", bbox=box)
        return place

    draw(expression, 0)
    axis.set(xlim=(-0.5, next(leaves) - 0.5), ylim=(-3.4, 0.4))
    axis.text(0, 0.1, "told true", color=BLUE, ha="center")
    axis.text(0, -0.25, "told false", color=ORANGE, ha="center")
    return figure
