"""One trace of a function: recorded once, compiled, and run for every call of its kind."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree
import torch
from torch import Tensor

from fluxlike._private.guards import guard
from fluxlike.scope import seeded
from fluxlike.scope.blocks import teach_inductor
from fluxlike.transforms.jit.call import Signature, number
from fluxlike.transforms.jit.donated import Donation
from fluxlike.transforms.jit.record import Record, record
from fluxlike.trees.leaves import Assigned

__all__ = ["Taken", "Trace"]

Taken = tuple[tuple[Any, ...], tuple[float, ...]]  # the tensors and the scalars of a call


class Trace:
    """A compiled call: its signature, and how to run it.

    Args:
        call: the function, of the tree of its arguments.
        signature: that of the call.
        leaves: those of the call.
        settings: what else the trace depends on.
        donated: for each argument leaf, whether its memory is given away.
        frozen: whether the tensors that the function closes over become constants.

    Attributes:
        call: as given.
        signature: as given.
        settings: as given.
        differentiated: whether the function closes over a tensor that autograd records, so that it has to
            run itself.
    """

    def __init__(
        self,
        call: Callable[[Any], Any],
        signature: Signature,
        leaves: Sequence[Any],
        settings: tuple[Any, ...],
        donated: Sequence[bool] | None,
        *,
        frozen: bool = False,
    ) -> None:
        from fluxlike._private.compiler.build import build

        teach_inductor()
        self.call, self.signature, self.settings = call, signature, settings
        taken = signature.inputs(leaves)
        assert taken is not None
        # The last scalars, as numbers and as tensors.
        self._numbers = [(v, number(v)) for v in taken[1]]
        noted = record(call, signature, signature.stand_ins(leaves), seeded.active())
        self._captured = [] if frozen else noted.graph.captured
        self._guard = guard(self._captured)
        self.differentiated = torch.is_grad_enabled() and any(x.grad_fn is not None for x in self._captured)
        self._donation = Donation(signature, noted, donated) if donated is not None else None
        if self._donation is not None:
            self._donation.require(taken[0], self._captured)
        targets = self._donation.targets if self._donation is not None else {}
        if not self.differentiated:
            self._run = build(noted.graph, targets, frozen=frozen)
        self._holds = noted.recorder.guard() if signature.dynamic else None
        self._plan(noted)

    def _plan(self, noted: Record) -> None:
        """How to put the leaves of a result together, of graph results, moved inputs and constants."""
        self._drawn, self._treedef = noted.drawn, noted.treedef
        self._constants = [out.constant for out in noted.outs]
        self._from_results = [(p, o.result) for p, o in enumerate(noted.outs) if o.result is not None]
        self._from_leaves = [(p, o.leaf) for p, o in enumerate(noted.outs) if o.leaf is not None]
        self._assigned = [p for p, o in enumerate(noted.outs) if o.assigned]

    def inputs(
        self, leaves: Sequence[Any], treedef: optree.PyTreeSpec, settings: tuple[Any, ...]
    ) -> Taken | None:
        """The inputs of a call; None if this trace is not of its kind."""
        if settings != self.settings or treedef != self.signature.treedef:
            return None
        taken = self.signature.inputs(leaves)
        if taken is None or not self._guard(*self._captured):
            return None
        return None if self._holds is not None and not self._holds(taken[0]) else taken

    def __call__(self, leaves: Sequence[Any], taken: Taken) -> Any:
        """Run a call whose inputs were taken by `inputs`."""
        tensors, scalars = taken
        donation = self._donation
        if donation is not None:
            donation.require(tensors, self._captured)
        inputs = [x.data if x.requires_grad else x for x in tensors]
        for n, value in enumerate(scalars):
            last = self._numbers[n]
            if last[0] != value or (not value and math.copysign(1, value) != math.copysign(1, last[0])):
                self._numbers[n] = last = value, number(value)
            inputs.append(last[1])
        draws = seeded.active()
        if draws is not None:
            inputs += draws.as_inputs()
            draws.advance(self._drawn)
        inputs += [x.data if x.requires_grad else x for x in self._captured]
        results = self._run(inputs)
        if donation is not None:
            results = donation.exchange(tensors, results)
        return self._result(leaves, results)

    def _result(self, leaves: Sequence[Any], results: Sequence[Any]) -> Any:
        out: list[Any] = [c.copy() if isinstance(c, np.ndarray) else c for c in self._constants]
        for place, k in self._from_results:
            out[place] = results[k]
        for place, i in self._from_leaves:
            x = leaves[i]
            out[place] = x.value if type(x) is Assigned else x
        for place in self._assigned:
            out[place] = Assigned(out[place])
        return self._treedef.unflatten(out)

    @property
    def captured(self) -> list[Tensor]:
        """The tensors that the function uses without getting them as arguments."""
        return list(self._captured)
