"""A training step on two ranks: ours replicated and sharded, DistributedDataParallel and FSDP2.

All train the same module from the same weights, with AdamW, one thread a rank, over gloo on this machine; the
two ranks share its cores, so what is compared is the work and the waiting, not a network.
"""

from __future__ import annotations

import functools
import os
import socket
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn

import fluxlike as fl
from benchmarks.harness import Row

Call = Callable[[], Tensor]

RANKS = 2
ROUNDS = 9


class Case(NamedTuple):
    """What is trained.

    Attributes:
        name: in words.
        make: makes the module.
        blocks: its parts that FSDP2 gathers one by one.
        batch: makes inputs and targets of one step.
    """

    name: str
    make: Callable[[], nn.Module]
    blocks: Callable[[nn.Module], list[nn.Module]]
    batch: Callable[[], tuple[Tensor, Tensor]]


class Transformer(nn.Module):
    """An encoder of tokens that predicts one of as many at each place."""

    def __init__(self, vocabulary: int = 2048, dim: int = 384, depth: int = 4) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 6, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x).flatten(0, 1)


def perceptron() -> nn.Module:
    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [nn.Linear(1024, 1024), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(1024, 64))


CASES = (
    Case(
        "transformer, 8.7 M parameters, 8 sequences of 128",
        Transformer,
        lambda module: list(module.blocks),  # type: ignore[arg-type]
        lambda: (torch.randint(2048, (8, 128)), torch.randint(2048, (8 * 128,))),
    ),
    Case(
        "perceptron, 6.4 M parameters, 256 rows",
        perceptron,
        lambda module: [layer for layer in module if isinstance(layer, nn.Linear)],  # type: ignore[union-attr]
        lambda: (torch.randn(256, 1024), torch.randint(64, (256,))),
    ),
)

PAIRS = (
    ("replicated", "DistributedDataParallel", 1.1),
    ("sharded", "FSDP2", 1.1),
    ("replicated, jit", "DistributedDataParallel", None),
    ("sharded, jit", "FSDP2", None),
)


def rows() -> Iterator[Row]:
    """Rows of each module: times of a step, then bytes that a rank sends in one."""
    for number, case in enumerate(CASES):
        found = _on_ranks(number)
        for ours, theirs, target in PAIRS:
            yield Row(f"{case.name}, {ours}", theirs, 1, found["time"][ours], found["time"][theirs], target)
        for ours, theirs, _ in PAIRS[:2]:
            sent = found["megabytes"]
            yield Row(f"{case.name}, {ours}, sent", theirs, 1, sent[ours], sent[theirs], 1.001, unit="MB")


def _on_ranks(number: int) -> dict[str, dict[str, float]]:
    """What the first rank measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    multiprocessing.spawn(_rank, (number, port, results), nprocs=RANKS)  # type: ignore[no-untyped-call]
    return results.get()


def _rank(rank: int, number: int, port: int, results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": str(RANKS), "LOCAL_RANK": str(rank)}
    torch.set_num_threads(1)
    fl.distributed.init("cpu")
    case = CASES[number]
    calls = {
        "replicated": ours(case, fl.distributed.replicate(), compiled=False),
        "sharded": ours(case, fl.distributed.shard(), compiled=False),
        "replicated, jit": ours(case, fl.distributed.replicate(), compiled=True),
        "sharded, jit": ours(case, fl.distributed.shard(), compiled=True),
        "DistributedDataParallel": theirs(case, sharded=False),
        "FSDP2": theirs(case, sharded=True),
    }
    first = {name: float(call()) for name, call in calls.items()}
    assert max(first.values()) - min(first.values()) < 1e-4, first
    times = _times(calls)
    megabytes = {}
    for name, call in calls.items():
        with fl.distributed.communication() as traffic:
            call()
        megabytes[name] = traffic.total / 1e6
    if rank == 0:
        results.put({"time": times, "megabytes": megabytes})


def _times(calls: dict[str, Call]) -> dict[str, float]:
    """Medians of steps in turns; every rank takes as many of each."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS + 1):
        for name, call in calls.items():
            dist.barrier()
            start = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def _start(case: Case) -> tuple[nn.Module, Iterator[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    return case.make(), cycle([case.batch() for _ in range(8)])


def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy."""
    return F.cross_entropy(model(x), y)


def ours(case: Case, plan: fl.distributed.Plan, *, compiled: bool) -> Call:
    """One step after another, of which model and state are donated."""
    module, batches = _start(case)
    mesh = fl.distributed.mesh()
    model = fl.to_device(fl.from_torch(module), mesh, plan)
    state = fl.setup(fl.AdamW(1e-3), model)

    def step(state: Any, model: Any, x: Tensor, y: Tensor) -> Any:
        value, grads = fl.withgradient(loss, model, x, y)
        return value, *fl.update(state, model, grads, donate=not compiled)

    run = fl.jit(step, donate=("state", "model")) if compiled else step

    def call() -> Tensor:
        nonlocal model, state
        value, model, state = run(state, model, *fl.distributed.shard_batch(next(batches), mesh))
        return value

    return call


def theirs(case: Case, *, sharded: bool) -> Call:
    """The same by torch's wrappers; each rank takes its part of the batch."""
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    module, batches = _start(case)
    if sharded:
        for block in case.blocks(module):
            fully_shard(block)
        module = fully_shard(module, reshard_after_forward=True)  # as ours, which frees what it gathered
    else:
        module = DistributedDataParallel(module)
    optimiser = torch.optim.AdamW(module.parameters(), lr=1e-3, fused=True)
    rank = dist.get_rank()
    mean = functools.partial(dist.all_reduce, op=dist.ReduceOp.SUM)

    def call() -> Tensor:
        x, y = next(batches)
        optimiser.zero_grad()
        value = loss(module, x.chunk(RANKS)[rank], y.chunk(RANKS)[rank])
        value.backward()
        optimiser.step()
        total = value.detach() / RANKS
        mean(total)
        return total

    return call
