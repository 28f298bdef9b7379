"""`checkpoint`: memory and time of the gradient of 64 layers, in segments of 8, and without.

Beside the parameters and their gradients, the layers keep one activation each; in √n segments of √n layers,
that is 8 inputs and the 8 activations of the segment that is computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint as torch_checkpoint

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns
from benchmarks.memory import peak

DEPTH, SEGMENT, WIDTH = 64, 8, 512


def _loss(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model(x).square().mean()


def _by_torch(parts: list[fl.Chain]) -> Callable[[torch.Tensor], torch.Tensor]:
    """The same segments, each a checkpoint of torch's."""

    def run(x: torch.Tensor) -> torch.Tensor:
        for part in parts:
            x = torch_checkpoint(part, x, use_reentrant=False)
        return x

    return run


def rows() -> Iterator[Row]:
    """Memory at the peak of a gradient, then its time."""
    layers = [fl.Dense(WIDTH, WIDTH, fl.tanh) for _ in range(DEPTH)]
    parts = [fl.Chain(*layers[i : i + SEGMENT]) for i in range(0, DEPTH, SEGMENT)]
    plain, light = fl.Chain(*parts), fl.Chain(*map(fl.checkpoint, parts))

    def ours(x: torch.Tensor) -> Any:
        return fl.gradient(_loss, light, x)

    def without(x: torch.Tensor) -> Any:
        return fl.gradient(_loss, plain, x)

    def by_torch(x: torch.Tensor) -> Any:
        return fl.gradient(lambda parts, x: _loss(_by_torch(parts), x), parts, x)

    x = torch.randn(4096, WIDTH)
    threads = torch.get_num_threads()
    mine, whole, theirs = (peak(lambda f=f: f(x)) / 2**20 for f in (ours, without, by_torch))
    name = f"memory, {DEPTH} layers in segments of {SEGMENT}, MiB"
    yield Row(name, "without checkpoint", threads, mine, whole, 0.4, unit="MiB")
    yield Row(name, "torch.utils.checkpoint", threads, mine, theirs, 1.05, unit="MiB")
    x = torch.randn(256, WIDTH)
    name = f"time, {DEPTH} layers in segments of {SEGMENT}"
    for threads in at_threads(1, 2):
        mine, whole, theirs = in_turns(lambda: ours(x), lambda: without(x), lambda: by_torch(x), rounds=9)
        yield Row(name, "without checkpoint", threads, mine, whole, 1.4)
        yield Row(name, "torch.utils.checkpoint", threads, mine, theirs, 1.05)
