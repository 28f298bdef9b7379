"""A training step of ResNet-18, with Momentum and with Adam: `jit` of all of it, and eager.

Peers are torchvision's network under `torch.compile` and eager, with torch's fused optimisers, and the same
network in JAX with Optax. All start from the same weights; each row says how far the first losses lie apart.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fluxlike as fl
from benchmarks import jax_networks
from benchmarks.checked import CheckedRow, difference
from benchmarks.harness import Row, at_threads, in_turns
from benchmarks.memory import peak
from benchmarks.torchvision_here import torchvision

Call = Callable[[], Any]


class Optimiser(NamedTuple):
    """One optimiser, as each library has it.

    Attributes:
        ours: a rule.
        theirs: makes torch's.
        optax: makes Optax's.
    """

    ours: Any
    theirs: Callable[..., torch.optim.Optimizer]
    optax: Callable[[Any], Any]


OPTIMISERS = {
    "Momentum": Optimiser(
        fl.Momentum(1e-3),
        partial(torch.optim.SGD, lr=1e-3, momentum=0.9, fused=True),
        lambda optax: optax.sgd(1e-3, momentum=0.9),
    ),
    "Adam": Optimiser(
        fl.Adam(1e-3), partial(torch.optim.Adam, lr=1e-3, fused=True), lambda optax: optax.adam(1e-3)
    ),
}
BATCH, CLASSES = 16, 1000
#: By size of the images, the optimisers and numbers of threads that are measured.
CASES = {96: (("Momentum", "Adam"), (1, 2)), 224: (("Momentum",), (2,))}
BUDGET = 15.0  # seconds of calls in turns a row
ROUNDS = 7


class Start(NamedTuple):
    """What a run begins with: torchvision's module, our model of the same weights, and batches.

    Attributes:
        module: in train mode.
        model: ours.
        x: images.
        y: targets for one step after another; what is learnt by heart ends in denormal numbers.
    """

    module: nn.Module
    model: Any
    x: Tensor
    y: list[Tensor]


def rows() -> Iterator[Row]:
    """Rows for each size, number of threads and optimiser: times, then memory at the peak."""
    for size, (names, threads) in CASES.items():
        for count in at_threads(*threads):
            for name in names:
                yield from _case(f"training ResNet-18, {BATCH}×{size}×{size}, {name}", name, size, count)


def _case(what: str, name: str, size: int, threads: int) -> Iterator[Row]:
    optimiser = OPTIMISERS[name]
    calls = {
        "jit": ours(_start(size), optimiser.ours, compiled=True),
        "eager": ours(_start(size), optimiser.ours, compiled=False),
        "torch.compile, fused": torchs(_start(size), optimiser.theirs, compiled=True),
        "torch eager, fused": torchs(_start(size), optimiser.theirs, compiled=False),
    }
    peers = [
        ("jit", "torch.compile, fused"),
        ("jit", "torch eager, fused"),
        ("eager", "torch eager, fused"),
    ]
    if jax_networks.runs_at(threads) and importlib.util.find_spec("optax"):
        calls["JAX and Optax, jitted"] = jaxs(_start(size), optimiser.optax)
        peers.append(("jit", "JAX and Optax, jitted"))
    first = {who: call() for who, call in calls.items()}
    times = dict(zip(calls, in_turns(*calls.values(), rounds=ROUNDS, budget=BUDGET), strict=True))
    for who, peer in peers:
        check = difference(first[who], first[peer])
        yield CheckedRow(f"{what}, {who}", peer, threads, times[who], times[peer], None, difference=check)
    held = _held(size, optimiser)
    for who, peer in peers[:1] + peers[2:3]:
        most = [(held + peak(calls[x])) / 1e6 for x in (who, peer)]
        yield Row(f"{what}, {who}, memory", peer, threads, *most, None, unit="MB")


def _start(size: int) -> Start:
    torch.manual_seed(0)
    torch._dynamo.reset()
    module = torchvision().models.resnet18(weights=None, num_classes=CLASSES).train()
    model = fl.models.load_weights(module.state_dict(), fl.models.ResNet(18, nclasses=CLASSES))
    y = list(torch.randint(CLASSES, (64, BATCH)))
    return Start(module, model, torch.randn(BATCH, 3, size, size), y)


def _held(size: int, optimiser: Optimiser) -> int:
    """Bytes of the model and of its state."""
    model = _start(size).model
    leaves = fl.fleaves((model, fl.setup(optimiser.ours, model)))
    return sum(x.nbytes for x in leaves if isinstance(x, Tensor))


def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
    """The mean cross-entropy."""
    return F.cross_entropy(model(x), y)


def ours(start: Start, rule: Any, *, compiled: bool) -> Call:
    """One step after another, of which the model and the state are donated."""

    def step(model: Any, state: Any, x: Tensor, y: Tensor) -> tuple[Any, Any, Tensor]:
        value, grads = fl.withgradient(loss, model, x, y)
        return *fl.update(state, model, grads, donate=not compiled), value

    run = fl.jit(step, donate=("model", "state")) if compiled else step
    model, y = start.model, cycle(start.y)
    state = fl.setup(rule, model)

    def call() -> Tensor:
        nonlocal model, state
        model, state, value = run(model, state, start.x, next(y))
        return value

    return call


def torchs(start: Start, make: Callable[..., torch.optim.Optimizer], *, compiled: bool) -> Call:
    """The same of torchvision's module."""
    optimiser, y = make(start.module.parameters()), cycle(start.y)
    forward = torch.compile(loss) if compiled else loss

    def call() -> Tensor:
        optimiser.zero_grad()
        value = forward(start.module, start.x, next(y))
        value.backward()
        optimiser.step()
        return value.detach()

    return call


def jaxs(start: Start, make: Callable[[Any], Any]) -> Call:
    """The same in JAX with Optax, channels last, everything that a step replaces donated."""
    import jax
    import jax.numpy as jnp
    import optax

    weights, statistics = jax_networks.arrays(start.module)
    optimiser = make(optax)
    state, x = optimiser.init(weights), jax_networks.channels_last(start.x)
    y = cycle([jnp.asarray(targets.numpy()) for targets in start.y])

    def mean_loss(weights: Any, statistics: Any, x: Any, y: Any) -> Any:
        logits, statistics = jax_networks.resnet(18, weights, statistics, x, training=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), statistics

    @partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(weights: Any, statistics: Any, state: Any, x: Any, y: Any) -> Any:
        (value, statistics), grads = jax.value_and_grad(mean_loss, has_aux=True)(weights, statistics, x, y)
        moved, state = optimiser.update(grads, state, weights)
        return optax.apply_updates(weights, moved), statistics, state, value

    def call() -> Any:
        nonlocal weights, statistics, state
        weights, statistics, state, value = step(weights, statistics, state, x, next(y))
        return value.block_until_ready()

    return call
