"""The pictures of the section "Gradients and transforms", each a function of its example's module."""

from __future__ import annotations

import math
import re

import torch
from gallery.card import BLUE, GREEN, GREY, ORANGE, plot, said, tiles

import fluxlike as fl


def population(example):
    data = example.load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32).flatten(1) / 16, torch.tensor(data.target)
    data, held_out = fl.splitobs((x, y), at=0.8, shuffle=True, key=fl.Key(1))
    keys = fl.Key(0).split(example.MEMBERS)
    rates = torch.logspace(-4, 0, example.MEMBERS, dtype=torch.float64)
    models, _ = example.train_all(*example.newborn(keys, rates.tolist()), keys, data, 500)
    accuracies = fl.vmap(example.accuracy, in_dims=(0, None, None))(models, *held_out)
    figure, axis = plot(
        xlabel="learning rate", ylabel="held-out accuracy (%)", xscale="log", ylim=(0, 102),
        title="64 networks in one step",
    )  # fmt: skip
    axis.plot(rates, 100 * accuracies, "o", ms=6)
    return figure


def maml(example):
    model = fl.Chain(fl.Dense(1, 40, fl.relu), fl.Dense(40, 40, fl.relu), fl.Dense(40, 1))
    direction, steps, lr = example.METHODS["MAML"]
    untrained = {"model": model, "log_lr": torch.tensor(math.log(lr))}
    learnt = example.learn(direction, untrained, steps, 600)
    x, y, x_test, y_test = (part[0] for part in example.tasks(1))
    everywhere = torch.linspace(-5, 5, 200)[:, None]
    all_x, order = torch.cat((x, x_test)).sort(0)
    figure, axis = plot(xticks=[], yticks=[], ylim=(-5, 7.5))
    axis.plot(all_x, torch.cat((y, y_test))[order[:, 0]], ":", color=GREY, lw=1.5)
    for name, start in (("from a random start", untrained), ("from the learnt one", learnt)):
        axis.plot(everywhere, example.adapted(start, steps * [(x, y)])(everywhere), label=name)
    axis.plot(x, y, "o", color=GREY, label=f"{len(x)} points, {steps} steps")
    axis.legend(loc="upper left")
    return figure


def xnor(example):
    digits = example.load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    model = example.train(example.network(), (images, torch.tensor(digits.target)), 5)
    weight = model.layers[2].weight[:, 0]
    figure, axes = tiles(4, 8)
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.9), hspace=0.3)
    for rows, filters in zip((axes[:2], axes[2:]), (weight, example.sign(weight)), strict=True):
        for axis, filter in zip(rows.flat, filters, strict=False):
            axis.imshow(filter, cmap="coolwarm", vmin=-filters.abs().max(), vmax=filters.abs().max())
    figure.text(0.02, 0.92, "weights that are trained; below, their signs")
    return figure


def checkpointing(example):
    found = re.findall(r"^ +(\S+) +(\d+) MiB", said(example, "--quick"), re.MULTILINE)
    names, sizes = zip(*(("none" if n == "-" else n, int(size)) for n, size in found), strict=True)
    figure, axis = plot(xlabel="layers in a checkpoint", ylabel="most memory (MiB)")
    axis.bar(names, sizes, color=[GREY, *(GREEN if s == min(sizes) else BLUE for s in sizes[1:])])
    return figure


def neural_ode(example):
    y = example.spiral()
    known = example.KNOWN
    figure, axis = plot(xticks=[], yticks=[])
    axis.plot(*y[:known].T, color=GREY, lw=1, label="known")
    axis.plot(*y[known - 1 :].T, color=ORANGE, lw=5, label="to be forecast")
    ahead, _ = example.forecast(example.fit(example.network(), y, 500), y)
    axis.plot(*ahead.T, "--", color=BLUE, label="forecast")
    axis.legend(loc="upper left", bbox_to_anchor=(1, 1))
    axis.spines[:].set_visible(False)
    axis.set_aspect("equal")
    return figure


def dqn(example):
    def angles(policy):
        with example.gymnasium.make("CartPole-v1") as env:
            observation, _ = env.reset(seed=1)
            found, ended = [], False
            while not ended:
                found.append(math.degrees(observation[2]))
                observation, _, fell, late, _ = env.step(policy(observation))
                ended = fell or late
        return found

    chance = torch.Generator().manual_seed(0)
    policies = {
        "random actions": lambda observation: torch.randint(2, (), generator=chance).item(),
        "what it has learnt": example.greedy(example.train(20_000, double=False, seed=0)),
    }
    figure, axis = plot(xlabel="step", ylabel="angle of the pole (°)", ylim=(-14, 20))
    for (name, policy), colour in zip(policies.items(), (ORANGE, BLUE), strict=True):
        axis.plot(angles(policy), color=colour, label=name)
    axis.legend(loc="upper right")
    return figure
