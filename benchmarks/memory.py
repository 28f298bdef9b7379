"""Memory at the peak of one step of an optimiser, in copies of the parameters.

Parameters, state and gradients are held before; the peer is what is allowed at the peak: no more for
a donated step, parameters and state once more for a pure one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import fluxlike as fl
from benchmarks.harness import Row


def peak(call: Callable[[], Any]) -> int:
    """The most bytes of tensors that a call held at once beyond those at its start."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        kept = call()
    del kept
    events = profile.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = top = 0
    for _, change in changes:
        now += change
        top = max(top, now)
    return top


def rows() -> Iterator[Row]:
    """A row for each rule, pure and donated."""
    params = [torch.randn(396, 396) for _ in range(160)]
    grads = [torch.randn(396, 396) for _ in range(160)]
    copy = sum(p.nbytes for p in params)
    for rule, copies in ((fl.Momentum(), 2), (fl.Adam(), 3), (fl.NAdam(), 3), (fl.EMA(fl.Adam()), 4)):
        for donate in (False, True):
            model = [p.clone() for p in params]
            state = fl.setup(rule, model)
            model, state = fl.update(state, model, grads, donate=donate)
            step = peak(lambda m=model, s=state, d=donate: fl.update(s, m, grads, donate=d))
            name = f"memory, {'donated' if donate else 'pure'}, {type(rule).__name__}"
            held = copies + 1
            allowed = held if donate else held + copies
            yield Row(name, "what is allowed", 1, held + step / copy, allowed, 1.05, unit="copies")
