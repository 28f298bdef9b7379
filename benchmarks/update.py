"""One step of an optimiser, pure and donated, against torch.optim and TorchOpt: time, and new memory.

Targets are for 25 M parameters in 160 tensors; 2,000 tensors of 1,000 show the cost of many small ones.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import torch

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns

SIZES = {"25 M in 160": (160, (396, 396)), "2,000 of 1,000": (2000, (1000,))}
RULES: dict[str, tuple[Any, Callable[..., torch.optim.Optimizer]]] = {
    "Adam": (fl.Adam(1e-3), lambda p, **how: torch.optim.Adam(p, 1e-3, **how)),
    "AdamW": (fl.AdamW(1e-3), lambda p, **how: torch.optim.AdamW(p, 1e-3, **how)),
    "Momentum": (fl.Momentum(1e-3), lambda p, **how: torch.optim.SGD(p, 1e-3, 0.9, **how)),
}
WAYS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}


def _ours(rule, params, grads, donate):
    model = [p.clone() for p in params]
    state = fl.setup(rule, model)

    def step():
        nonlocal model, state
        model, state = fl.update(state, model, grads, donate=donate)

    return step


def _torch(make, params, grads, how):
    theirs = [torch.nn.Parameter(p.clone()) for p in params]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g.clone()
    return make(theirs, **how).step


def _torchopt(name, params, grads):
    import torchopt

    rule = {
        "Adam": lambda: torchopt.adam(1e-3),
        "AdamW": lambda: torchopt.adamw(1e-3),
        "Momentum": lambda: torchopt.sgd(1e-3, momentum=0.9),
    }[name]()
    model, state = tuple(params), rule.init(tuple(params))

    def step():
        nonlocal model, state
        updates, state = rule.update(tuple(grads), state, params=model, inplace=False)
        model = torchopt.apply_updates(model, updates, inplace=False)

    return step


def rows() -> Iterator[Row]:
    """A row for each rule, size, way and peer, at one and at two threads."""
    has_torchopt = importlib.util.find_spec("torchopt") is not None
    for size, (count, shape) in SIZES.items():
        params = [torch.randn(shape) for _ in range(count)]
        grads = [0.01 * torch.randn(shape) for _ in range(count)]
        large = count < 1000
        for threads in at_threads(1, 2):
            for name, (rule, make) in RULES.items():
                calls = [_ours(rule, params, grads, donate) for donate in (True, False)]
                peers = {f"torch.optim, {way}": _torch(make, params, grads, how) for way, how in WAYS.items()}
                if has_torchopt:
                    peers["TorchOpt"] = _torchopt(name, params, grads)
                donated, pure, *theirs = in_turns(*calls, *peers.values(), budget=10.0)
                for peer, time in zip(peers, theirs, strict=True):
                    goal = (1.05, 2.5) if large and peer.endswith("fused") else (None, None)
                    yield Row(f"update, donated, {name}, {size}", peer, threads, donated, time, goal[0])
                    goal = (None, 0.35) if large and peer == "TorchOpt" else goal
                    yield Row(f"update, pure, {name}, {size}", peer, threads, pure, time, goal[1])
