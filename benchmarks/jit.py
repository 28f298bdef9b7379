"""`jit` of a whole train step against torch, eager and compiled, and against Equinox with Optax."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

import fluxlike as fl
from benchmarks import workloads
from benchmarks.harness import Row, at_threads, in_turns
from benchmarks.memory import peak

_TARGETS = {"MLP": 0.70, "CNN": 0.85, "GPT": 0.95}


def rows() -> Iterator[Row]:
    """A row for each workload and peer, then first calls, memory, and the cost of a call."""
    for threads in at_threads(1, 2):
        for name, make in workloads.WORKLOADS.items():
            yield from _steps(name, make(), threads)
    for name, make in workloads.WORKLOADS.items():
        work = make()
        ours, theirs = workloads.ours(work), workloads.torchs(work)
        ours(), theirs(), ours(), theirs()
        held = sum(x.nbytes for x in fl.fleaves(work.model)) * 3
        row = [(held + peak(call)) / 1e6 for call in (ours, theirs)]
        yield Row(f"jit, {name}, memory at the peak", "torch.compile", 1, *row, 1.0, unit="MB")
    yield from _overhead()
    for name in workloads.WORKLOADS:
        yield from _first_calls(name)


def _steps(name: str, work: workloads.Workload, threads: int) -> Iterator[Row]:
    peers: list[tuple[str, Any, float | None]] = [
        ("torch.compile, fused Adam", workloads.torchs(work), _TARGETS[name]),
        ("torch eager, fused Adam", workloads.torchs(work, compiled=False), None),
        ("fluxlike eager", workloads.ours(work, compiled=False), None),
    ]
    calls = [workloads.ours(work), *(call for _, call, _ in peers)]
    ours, *theirs = in_turns(*calls, rounds=21, budget=8.0)
    for (peer, _, target), time in zip(peers, theirs, strict=True):
        yield Row(f"jit, {name} train step", peer, threads, ours, time, target)
    if threads == torch.get_num_threads() and threads == _jax_threads():
        ours, time = in_turns(calls[0], workloads.equinoxs(name, work), rounds=21, budget=8.0)
        yield Row(f"jit, {name} train step", "Equinox and Optax, jitted", threads, ours, time, 0.60)


def _jax_threads() -> int:
    """How many threads XLA uses: as many as there are cores."""
    return len(os.sched_getaffinity(0))


def _overhead() -> Iterator[Row]:
    """A call whose graph does next to nothing, against the allowance of the design."""
    from fluxlike.trees.structure import flatten

    for make in workloads.WORKLOADS.values():
        model = make().model
        state = fl.setup(fl.Adam(), model)

        def touch(model: Any, state: Any, x: torch.Tensor) -> Any:
            return model, state, x + 1

        call = fl.jit(touch)
        x = torch.zeros(())
        leaves, treedef = flatten((model, state, x))
        tensors = len({id(t) for t in leaves if isinstance(t, torch.Tensor)})
        nodes = treedef.num_nodes - treedef.num_leaves
        allowed = 50e-6 + 0.5e-6 * tensors + 2e-6 * nodes
        (time,) = in_turns(lambda c=call, m=model, s=state, x=x: c(m, s, x), budget=1.0)
        row = f"calling a jitted function, {tensors} tensors, {nodes} nodes"
        yield Row(row, "what is allowed", torch.get_num_threads(), time, allowed, 1.0)


_FIRST = """
import sys, time, torch
from benchmarks import workloads
work = workloads.WORKLOADS[sys.argv[1]]()
call = getattr(workloads, sys.argv[2])(work)
torch._inductor.config, torch._dynamo.config  # the compiler itself is loaded
start = time.perf_counter()
call()
print(time.perf_counter() - start)
"""


def _first_calls(name: str) -> Iterator[Row]:
    """The first call of a new process, without and with Inductor's cache on disk."""
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(3):
        for who in ("ours", "torchs"):
            with tempfile.TemporaryDirectory() as cache:
                settings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
                for when in ("cold", "warm"):
                    run = subprocess.run(
                        [sys.executable, "-c", _FIRST, name, who],
                        capture_output=True,
                        text=True,
                        check=True,
                        env=settings,
                    )
                    times.setdefault((who, when), []).append(float(run.stdout))
    for when, target in (("cold", 1.0), ("warm", None)):
        ours, theirs = (statistics.median(times[who, when]) for who in ("ours", "torchs"))
        row = f"jit, {name}, first call, caches {when}"
        yield Row(row, "torch.compile", torch.get_num_threads(), ours, theirs, target)
