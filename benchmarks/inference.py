"""`inference` against torchvision, eager and compiled with frozen weights, and against JAX.

ResNet50, ResNet101 and VGG19 on images of 224×224, of the same weights everywhere; each row says how far the
outputs lie apart. First calls compile, with caches that are cold when the benchmark begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._inductor import config

import fluxlike as fl
from benchmarks import jax_networks
from benchmarks.checked import CheckedRow, difference
from benchmarks.cold import cold_caches
from benchmarks.harness import Row, at_threads, in_turns
from benchmarks.torchvision_here import torchvision
from fluxlike.models.vgg import VGG, VGGS

Call = Callable[[], Any]


class Network(NamedTuple):
    """A network, as fluxlike, torchvision and JAX write it.

    Attributes:
        ours: makes fluxlike's.
        theirs: the name of torchvision's.
        jax: the function of `jax_networks`.
    """

    ours: Callable[[], Any]
    theirs: str
    jax: Callable[..., Any]


NETWORKS = {
    "ResNet50": Network(lambda: fl.models.ResNet(50), "resnet50", partial(jax_networks.resnet, 50)),
    "ResNet101": Network(lambda: fl.models.ResNet(101), "resnet101", partial(jax_networks.resnet, 101)),
    "VGG19": Network(lambda: VGG(19), "vgg19", partial(jax_networks.vgg, VGGS[19].stages)),
}
BATCHES, THREADS, SIZE = (1, 16), (1, 2), 224
BF16 = {(2, 16)}  # numbers of threads and batches at which bfloat16 is measured too
BUDGET = 8.0  # seconds of calls in turns a row
ROUNDS = (3, 15)  # at least, at most


def rows() -> Iterator[Row]:
    """For each number of threads, network and batch a row a peer, and one for the first call."""
    with cold_caches():
        for threads in at_threads(*THREADS):
            for name, network in NETWORKS.items():
                module = _module(network.theirs)
                model = fl.models.load_weights(module.state_dict(), network.ours())
                for batch in BATCHES:
                    x = torch.randn(batch, 3, SIZE, SIZE)
                    what = f"inference, {name}, batch {batch}"
                    yield from _comparisons(what, network, module, model, x, threads)


def _comparisons(
    what: str, network: Network, module: nn.Module, model: Any, x: Tensor, threads: int
) -> Iterator[Row]:
    ours, first = compiled_ours(model, x)
    theirs, their_first = compiled_torch(module, x)
    peers: list[tuple[str, Call, float | None]] = [
        ("torchvision eager", partial(_eager, module, x), 0.70),
        ("torch.compile, frozen", theirs, 1.00),
    ]
    if jax_networks.runs_at(threads):
        peers.append(("JAX, jitted", compiled_jax(network, module, x), None))
    yield from compared(what, threads, ours, peers)
    yield Row(f"{what}, first call", "torch.compile, frozen", threads, first, their_first, None)
    if (threads, len(x)) in BF16:
        halves = deepcopy(module).bfloat16()
        low, _ = compiled_ours(fl.bf16(model), x.bfloat16())
        theirs, _ = compiled_torch(halves, x.bfloat16())
        peers = [("fluxlike, float32", ours, None), ("torch.compile, frozen, bf16", theirs, None)]
        yield from compared(what.replace(", batch", ", bf16, batch"), threads, low, peers)


def _module(name: str) -> nn.Module:
    """A network of torchvision in test mode, whose BatchNorms have seen a batch."""
    torch.manual_seed(0)
    module = getattr(torchvision().models, name)(weights=None)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None  # a mean over all batches, here of one
    if norms:
        with torch.no_grad():
            module(torch.randn(8, 3, 64, 64))
    return module.eval()


def _eager(module: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return module(x)


def compiled_ours(model: Any, x: Tensor) -> tuple[Call, float]:
    """Our call, and how long it took to compile."""
    start = time.perf_counter()
    run = fl.inference(model, x)
    return partial(run, x), time.perf_counter() - start


def compiled_torch(module: nn.Module, x: Tensor) -> tuple[Call, float]:
    """The call of `torch.compile` with frozen weights, and how long its first one took."""
    torch._dynamo.reset()
    run = torch.compile(module)

    def call() -> Tensor:
        with torch.no_grad():
            return run(x)

    with config.patch(freezing=True):
        start = time.perf_counter()
        call()
        return call, time.perf_counter() - start


def compiled_jax(network: Network, module: nn.Module, x: Tensor) -> Call:
    """The call of `jax.jit`, compiled; the weights are arguments that lie on the device."""
    import jax

    weights, statistics = jax_networks.arrays(module)
    images = jax_networks.channels_last(x)
    run = jax.jit(lambda weights, statistics, x: network.jax(weights, statistics, x)[0])

    def call() -> Any:
        return run(weights, statistics, images).block_until_ready()

    call()
    return call


def compared(
    what: str, threads: int, ours: Call, peers: list[tuple[str, Call, float | None]]
) -> Iterator[Row]:
    """A row for each of the peers: name, call and target."""
    calls = [ours, *(call for _, call, _ in peers)]
    start = time.perf_counter()
    result, *others = (call() for call in calls)
    rounds = int(BUDGET / (time.perf_counter() - start))  # a call of a large network takes seconds
    checks = [difference(result, other) for other in others]
    fewest, most = ROUNDS
    time_of_ours, *times = in_turns(*calls, rounds=max(fewest, min(most, rounds)), budget=BUDGET)
    for (peer, _, target), taken, check in zip(peers, times, checks, strict=True):
        yield CheckedRow(what, peer, threads, time_of_ours, taken, target, difference=check)
