"""A recursive network: it reads a tree from its leaves to its root by one small layer, again and again.

    python examples/recursive.py            three hundred steps, about half a minute
    python examples/recursive.py --quick    fewer steps

After Socher et al. 2013, "Recursive deep models for semantic compositionality over a sentiment treebank",
where every phrase of a sentence has a label. Here sentences are nested tuples such as
("and", "true", ("not", "false")), and labels their values. Each tree is computed in its own shape, by plain
recursion; the network is judged by trees that are deeper than any that it has learnt from.
"""

from __future__ import annotations

import argparse
import random

import torch

import fluxlike as fl

WORDS = ("true", "false", "and", "or", "xor", "not", "")
DIM = 24


def tree(depth, rng):
    """A random expression of a depth."""
    if depth == 0:
        return rng.choice(WORDS[:2])
    word, parts = rng.choice(WORDS[2:6]), [tree(depth - 1, rng)]
    if word != "not":
        parts.append(tree(rng.randrange(depth), rng))
        rng.shuffle(parts)
    return (word, *parts)


def value(expression):
    """Whether an expression is true."""
    if isinstance(expression, str):
        return expression == "true"
    word, *parts = expression
    values = [*map(value, parts)]
    return {"and": all(values), "or": any(values), "xor": sum(values) == 1, "not": not values[0]}[word]


def network():
    return {
        "words": fl.Embedding(len(WORDS), DIM),
        "combine": fl.Chain(fl.Dense(3 * DIM, 2 * DIM, fl.relu), fl.Dense(2 * DIM, DIM, fl.tanh)),
        "head": fl.Dense(DIM, 2),
    }


def phrases(model, words, expression):
    """Features and value of an expression, and before them those of all that are in it."""
    if isinstance(expression, str):
        return [(words[expression], value(expression))]
    word, *parts = expression
    inner = [phrases(model, words, part) for part in parts]
    left, right = inner[0][-1][0], inner[1][-1][0] if len(inner) > 1 else words[""]
    whole = model["combine"](torch.cat((words[word], left, right)))
    return [*(phrase for part in inner for phrase in part), (whole, value(expression))]


def read(model, expressions):
    """Logits and values of every phrase of each expression."""
    words = dict(zip(WORDS, model["words"](torch.arange(len(WORDS))).unbind(), strict=True))
    found = [phrase for expression in expressions for phrase in phrases(model, words, expression)]
    features, values = zip(*found, strict=True)
    return model["head"](torch.stack(features)), torch.tensor(values).long()


def loss(model, expressions):
    return fl.losses.logitcrossentropy(*read(model, expressions))


def accuracy(model, expressions):
    """Of how many expressions the value is found."""
    right = [logits[-1].argmax() == values[-1] for logits, values in (read(model, [e]) for e in expressions)]
    return sum(right).item() / len(right)


def train(model, steps, rng, deep):
    state = fl.setup(fl.Scheduled(fl.Adam(), lr=fl.schedules.OneCycle(steps, 1e-2)), model)
    for step in range(steps):
        lesson = [tree(rng.randint(1, 4), rng) for _ in range(32)]
        error, grads = fl.withgradient(loss, model, lesson)
        model, state = fl.update(state, model, grads)
        if (step + 1) % (steps // 5) == 0:
            print(f"step {step + 1:4}: loss {error.item():.4f}, {accuracy(model, deep):.1%} of deeper trees")
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps")
    steps, goal = (100, 0.9) if parser.parse_args().quick else (300, 0.99)

    torch.manual_seed(0)
    rng = random.Random(0)
    deep = [tree(8, rng) for _ in range(200)]
    model = train(network(), steps, rng, deep)

    found, true = accuracy(model, deep), sum(map(value, deep)) / len(deep)
    baseline = max(true, 1 - true)
    print(f"{found:.1%} of deeper trees; the same answer to all would be right in {baseline:.1%}")
    if found < goal:
        raise SystemExit(f"expected at least {goal:.0%}")


if __name__ == "__main__":
    main()
