"""What `scaling` measures: gradients, updates, compiled functions, trees and inference, of growing sizes."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fluxlike as fl
from benchmarks.cold import cold_caches
from benchmarks.memory import peak
from fluxlike.trees.structure import flatten

Call = Callable[[], Any]


class Memory(NamedTuple):
    """The bytes at a peak, and the work that they belong to, with its unit."""

    cost: float
    work: float
    unit: str


class Case(NamedTuple):
    """One size.

    Attributes:
        work: how much there is to do.
        unit: of the work.
        ours: the call that is timed.
        theirs: torch's for the same. (default: none)
        memory: bytes at the peak. (default: not measured)
        first: seconds that first calls took, with cold caches. (default: not measured)
    """

    work: float
    unit: str
    ours: Call
    theirs: Call | None = None
    memory: Memory | None = None
    first: tuple[float, ...] = ()


@dataclass(frozen=True)
class Curve:
    """A case at several sizes.

    Attributes:
        name: what is measured.
        axis: what is varied.
        sizes: its values, growing.
        case: makes the case of a size.
        beyond: whether the time beyond torch's is looked at too. (default: False)
    """

    name: str
    axis: str
    sizes: tuple[int, ...]
    case: Callable[[int], Case]
    beyond: bool = False


def _loss(model: Any, x: Tensor) -> Tensor:
    return model(x).square().mean()


def _perceptron(depth: int, width: int) -> fl.Chain:
    return fl.Chain(*(fl.Dense(width, width, fl.relu) for _ in range(depth)))


def _module(depth: int, width: int) -> nn.Module:
    """The same of torch's."""
    return nn.Sequential(*(part for _ in range(depth) for part in (nn.Linear(width, width), nn.ReLU())))


def _flops(call: Call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def gradient(batch: int = 64, depth: int = 4, width: int = 64) -> Case:
    """A perceptron's gradient, against ``loss.backward()``."""
    model = _perceptron(depth, width)
    return _gradients(partial(_loss, x=torch.randn(batch, width)), model, _module(depth, width))


def gradient_of_leaves(leaves: int) -> Case:
    """The gradient of many small tensors, all that is done being a product and a sum."""
    tensors = [torch.randn(8) for _ in range(leaves)]
    module = nn.ParameterList(nn.Parameter(t.clone()) for t in tensors)
    return _gradients(lambda ts: torch.stack(list(ts)).square().sum(), tensors, module, work=leaves)


def _gradients(
    loss: Callable[[Any], Tensor], model: Any, module: nn.Module, *, work: int | None = None
) -> Case:
    grads = None

    def ours() -> None:
        # As in a training loop: the last gradients live until the next are there, as .grad does.
        nonlocal grads
        grads = fl.gradient(loss, model)

    def backward() -> None:
        loss(module).backward()

    def theirs() -> None:
        module.zero_grad()
        backward()

    flops = _flops(theirs) if work is None else 0
    module.zero_grad()
    memory = Memory(peak(lambda: fl.gradient(loss, model)), peak(backward), "bytes")
    return Case(work or flops, "leaves" if work else "FLOP", ours, theirs, memory)


def update(donate: bool, leaves: int = 16, width: int = 32, unit: str = "leaves") -> Case:
    """A step of Adam, against torch's fused one, in place."""
    params = [torch.randn(width, width) for _ in range(leaves)]
    grads = [torch.randn(width, width) for _ in range(leaves)]

    def copies() -> tuple[Any, Any]:
        model = fl.tree.clone(params)
        return fl.update(fl.setup(fl.Adam(1e-3), model), model, grads)

    model, state = copies()

    def ours() -> None:
        nonlocal model, state
        model, state = fl.update(state, model, grads, donate=donate)

    theirs = [nn.Parameter(p.clone()) for p in params]
    for p, g in zip(theirs, grads, strict=True):
        p.grad = g.clone()
    once, state_once = copies()
    held = sum(x.nbytes for x in fl.fleaves((once, state_once, grads)) if isinstance(x, Tensor))
    most = held + peak(lambda: fl.update(state_once, once, grads, donate=donate))
    bytes_of_parameters = sum(p.nbytes for p in params)
    return Case(
        leaves if unit == "leaves" else bytes_of_parameters,
        unit,
        ours,
        torch.optim.Adam(theirs, 1e-3, fused=True).step,
        Memory(most, bytes_of_parameters, "bytes"),
    )


def jitted_call(leaves: int) -> Case:
    """A call of a compiled function whose graph does next to nothing."""
    tensors = [torch.randn(8) for _ in range(leaves)]
    call, x = fl.jit(lambda tensors, x: (tensors, x + 1)), torch.zeros(())
    call(tensors, x)
    return Case(leaves, "leaves", lambda: call(tensors, x))


def jitted_step(depth: int) -> Case:
    """A train step of a perceptron, compiled, and its first calls; against torch's, eager."""
    model, x = _perceptron(depth, 64), torch.randn(64, 64)
    module = _module(depth, 64)
    optimiser = torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    state = fl.setup(fl.Adam(1e-3), model)

    def step(model: Any, state: Any, x: Tensor) -> Any:
        return fl.update(state, model, fl.gradient(_loss, model, x))

    def compiled() -> Call:
        run = fl.jit(step)
        run(model, state, x)
        return partial(run, model, state, x)

    def theirs() -> None:
        optimiser.zero_grad()
        _loss(module, x).backward()
        optimiser.step()

    first, run = _first(compiled)
    return Case(depth, "layers", run, theirs, memory=Memory(peak(run), depth, "layers"), first=first)


def inference(batch: int = 4, depth: int = 2, width: int = 32, repeats: int = 0) -> Case:
    """Convolutions of 3×3 with norms on images of 32×32, against the same model eager."""
    model = fl.Chain(*(fl.models.conv_norm(3, width, width) for _ in range(depth)))
    x = torch.randn(batch, width, 32, 32)
    eager = torch.no_grad()(partial(model, x))
    first, run = _first(lambda: partial(fl.inference(model, x), x), repeats or 1)
    memory = Memory(peak(run), peak(eager), "bytes")
    return Case(_flops(eager), "FLOP", run, eager, memory, first if repeats else ())


def _first(compiled: Callable[[], Call], repeats: int = 2) -> tuple[tuple[float, ...], Call]:
    """How long a function takes to compile, each time with cold caches, and what the last time gave."""
    taken = []
    for _ in range(repeats):
        with cold_caches():
            start = time.perf_counter()
            call = compiled()
            taken.append(time.perf_counter() - start)
    return tuple(taken), call


def _nested(depth: int) -> Any:
    tree: Any = torch.zeros(1)
    for _ in range(depth):
        tree = [tree, torch.zeros(1)]
    return tree


def _trees(make: Callable[[int], Any], back: bool, size: int) -> Case:
    """Flattening, or building again, with the objects that Python makes for it."""
    tree = make(size)
    leaves, treedef = flatten(tree)
    call = (lambda: treedef.unflatten(leaves)) if back else (lambda: flatten(tree))
    call()
    copies = 1 + 20_000 // treedef.num_nodes  # Python keeps some freed lists, which count for a single one
    tracemalloc.start()
    kept = [call() for _ in range(copies)]
    most = tracemalloc.get_traced_memory()[1] / copies
    tracemalloc.stop()
    del kept
    return Case(treedef.num_nodes, "nodes", call, memory=Memory(most, treedef.num_nodes, "nodes"))


_TREES: dict[str, tuple[Callable[[int], Any], tuple[int, ...]]] = {
    "leaves": (lambda n: [torch.zeros(1) for _ in range(n)], (10, 100, 1000, 10_000)),
    "depth": (_nested, (4, 16, 64, 256)),
    "layers": (lambda n: _perceptron(n, 4), (4, 16, 64, 256, 1024)),
}

CURVES = (
    Curve("gradient", "batch", (16, 64, 256, 1024, 4096), lambda n: gradient(batch=n), beyond=True),
    Curve("gradient", "depth", (2, 8, 32, 128), lambda n: gradient(depth=n), beyond=True),
    Curve("gradient", "width", (32, 64, 128, 256, 512, 1024), lambda n: gradient(width=n), beyond=True),
    Curve("gradient", "leaves", (10, 30, 100, 300, 1000, 3000), gradient_of_leaves, beyond=True),
    *(
        Curve(f"update, {'donated' if donate else 'pure'}", axis, sizes, partial(case, donate))
        for donate in (True, False)
        for axis, sizes, case in (
            ("leaves", (10, 30, 100, 300, 1000, 3000), lambda donate, n: update(donate, leaves=n)),
            ("width", (32, 64, 128, 256, 512, 1024), lambda donate, n: update(donate, width=n, unit="bytes")),
        )
    ),
    Curve("jit", "leaves", (10, 30, 100, 300, 1000), jitted_call),
    Curve("jit of a train step", "depth", (2, 4, 8, 16, 32), jitted_step),
    Curve("inference", "batch", (1, 4, 16, 64), lambda n: inference(batch=n)),
    Curve("inference", "depth", (1, 2, 4, 8), lambda n: inference(depth=n, repeats=2)),
    Curve("inference", "width", (16, 32, 64, 128), lambda n: inference(width=n)),
    *(
        Curve(name, axis, sizes, partial(_trees, make, back))
        for name, back in (("flatten", False), ("unflatten", True))
        for axis, (make, sizes) in _TREES.items()
    ),
)
