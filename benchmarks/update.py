"""Pure `update` of 25 M parameters in 160 tensors by Adam, against torch and TorchOpt."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import torch

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns

TENSORS, SIDE = 160, 396  # 160 · 396² = 25.1 M


def _pure(params, grads):
    model, state = params, fl.setup(fl.Adam(1e-3), params)

    def step():
        nonlocal model, state
        model, state = fl.update(state, model, grads)

    return step


def _fused(params, grads):
    module_params = [torch.nn.Parameter(p.clone()) for p in params]
    for p, g in zip(module_params, grads, strict=True):
        p.grad = g.clone()
    return torch.optim.Adam(module_params, 1e-3, fused=True).step


def _torchopt(params, grads):
    import torchopt

    rule = torchopt.adam(1e-3)
    model, state = tuple(params), rule.init(tuple(params))

    def step():
        nonlocal model, state
        updates, state = rule.update(tuple(grads), state, params=model, inplace=False)
        model = torchopt.apply_updates(model, updates, inplace=False)

    return step


def rows() -> Iterator[Row]:
    """One row a peer and number of threads."""
    params = [torch.randn(SIDE, SIDE) for _ in range(TENSORS)]
    grads = [0.01 * torch.randn(SIDE, SIDE) for _ in range(TENSORS)]
    has_torchopt = importlib.util.find_spec("torchopt") is not None
    for threads in at_threads(1, 2):
        calls = [_pure(params, grads), _fused(params, grads)]
        calls += [_torchopt(params, grads)] if has_torchopt else []
        times = in_turns(*calls, budget=8.0)
        name = "update, pure, Adam, 25 M in 160 tensors"
        yield Row(name, "torch.optim.Adam(fused=True)", threads, times[0], times[1], 2.5)
        if has_torchopt:
            yield Row(name, "TorchOpt's functional Adam", threads, times[0], times[2], 0.35)
