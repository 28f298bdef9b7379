"""Donation to a compiled function: which result is written over which argument, call after call."""

from __future__ import annotations

import operator
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fluxlike.transforms.donation import consume, require_donatable, span
from fluxlike.transforms.jit.call import Signature
from fluxlike.transforms.jit.record import Record

__all__ = ["Donation"]


class Donation:
    """Results that are written over the memory of arguments.

    Args:
        signature: that of the call.
        noted: what was recorded.
        donated: for each leaf of the arguments, whether its memory is given away.

    Attributes:
        targets: from the number of a result of the graph to that of the input that it is written over.

    Raises:
        ValueError: a donated leaf is in an argument that is not donated, too.
    """

    def __init__(self, signature: Signature, noted: Record, donated: Sequence[bool]) -> None:
        self._paths = [f"the argument {signature.paths[i]}" for i in signature.tensors]
        gives = self._given(signature, donated)
        inputs = noted.graph.inputs
        handed_on = {signature.input_at[o.leaf] for o in noted.outs if o.leaf is not None}
        free = {
            k: inputs[k] for k in gives if k not in handed_on and inputs[k].ndim and signature.kinds[k].plain
        }
        self.targets = self._matched(signature, noted, free)
        self._numbers = sorted(self.targets.values())
        self._others = [k for k in range(len(self._paths)) if k not in set(self._numbers)]
        self._pairs = sorted(self.targets.items())
        self._last: _Last | None = None

    @staticmethod
    def _given(signature: Signature, donated: Sequence[bool]) -> set[int]:
        gives: dict[int, int] = {}
        keeps: dict[int, int] = {}
        for i, k in signature.input_at.items():
            if k < len(signature.tensors):
                (gives if donated[i] else keeps).setdefault(k, i)
        for k, i in gives.items():
            if k in keeps:
                raise ValueError(
                    f"the argument {signature.paths[i]} is donated and stands at "
                    f"{signature.paths[keeps[k]]} too, which is not; pass fluxlike.tree.clone of one of "
                    "them, or leave donate= out"
                )
        return set(gives)

    @staticmethod
    def _matched(signature: Signature, noted: Record, free: dict[int, Tensor]) -> dict[int, int]:
        """Each result with an input like it: the one at its own place in an equal tree, if any."""
        results = _results(noted.graph)
        targets: dict[int, int] = {}

        def pair(k: int, i: int) -> None:
            x, y = free.get(i), results[k]
            alike = (
                x is not None
                and y is not None
                and x.dtype == y.dtype
                and x.device == y.device
                and x.shape == y.shape
            )
            if alike and k not in targets:
                targets[k] = i
                del free[i]

        arguments = _subtrees(signature.treedef)
        for start, part in _subtrees(noted.treedef):
            for first, argument in arguments:
                if part.num_leaves and part == argument:
                    for n in range(part.num_leaves):
                        k, i = noted.outs[start + n].result, signature.input_at.get(first + n)
                        if k is not None and i is not None:
                            pair(k, i)
        for k in range(len(results)):
            for i in list(free):
                if k not in targets:
                    pair(k, i)
        return targets

    def require(self, tensors: Sequence[Tensor], captured: Sequence[Tensor]) -> None:
        """Raise unless the donated tensors of a call can be written over.

        Raises:
            ValueError: one overlaps another or itself, or lies in memory that torch does not own.
        """
        donated = [tensors[k] for k in self._numbers]
        others = [tensors[k] for k in self._others]
        others += captured
        last = self._last
        if last is not None and last.returned(donated) and last.apart(others):
            return
        named = [(self._paths[k], tensors[k]) for k in self._numbers]
        rest = [(self._paths[k], tensors[k]) for k in self._others]
        rest += [("a tensor that the function closes over", x) for x in captured]
        require_donatable(named, rest)

    def exchange(self, tensors: Sequence[Tensor], results: Sequence[Any]) -> list[Any]:
        """The results, those that were written over donated memory as new tensors of it."""
        out = list(results)
        fresh: dict[int, Tensor] = {}
        for k, i in self._pairs:
            out[k] = fresh[i] = tensors[i].data
        consume([tensors[k] for k in self._numbers])
        moved = [fresh[i] for i in self._numbers]
        last = self._last
        if last is not None and last.pointers == [x.data_ptr() for x in moved]:
            self._last = _Last(moved, last.pointers, last.spans)
        else:
            self._last = _Last.of(moved)
        return out


class _Last:
    """What one call wrote over: where it is donated again, as it was, nothing of it is checked anew.

    An object does not change, so that several threads may call at once.

    Attributes:
        pointers: where the memory of each tensor starts.
        spans: the sorted first and last addresses of the memory of all.
    """

    def __init__(
        self, tensors: Sequence[Tensor], pointers: list[int], spans: tuple[list[int], list[int]]
    ) -> None:
        self._refs = [weakref.ref(x) for x in tensors]
        self.pointers, self.spans = pointers, spans

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> _Last:
        spans = sorted(map(span, tensors))
        return cls(tensors, [x.data_ptr() for x in tensors], ([s for s, _ in spans], [e for _, e in spans]))

    def returned(self, donated: Sequence[Tensor]) -> bool:
        """Whether these are the tensors that the call returned, in the memory that they had."""
        return (
            all(map(operator.is_, [ref() for ref in self._refs], donated))
            and [x.data_ptr() for x in donated] == self.pointers
        )

    def apart(self, others: Sequence[Tensor]) -> bool:
        """Whether other tensors share none of the memory."""
        starts, stops = self.spans
        for x in others:
            start, stop = span(x)
            k = bisect_right(starts, start)
            if (k and stops[k - 1] > start) or (k < len(starts) and starts[k] < stop):
                return False
        return True


def _results(graph: Any) -> list[Tensor | None]:
    """The fake tensors that a graph returns."""
    (output,) = graph.module.graph.find_nodes(op="output")
    values = [getattr(n, "meta", {}).get("val") for n in output.args[0]]
    return [v if isinstance(v, torch.Tensor) else None for v in values]


def _subtrees(treedef: Any) -> list[tuple[int, Any]]:
    """The trees in the first levels of a structure of containers, with the number of their first leaf."""
    found: list[tuple[int, Any]] = []

    def visit(part: Any, start: int, depth: int) -> None:
        found.append((start, part))
        if depth == 0 or part.type not in (tuple, list, dict):
            return
        for child in part.children():
            visit(child, start, depth - 1)
            start += child.num_leaves

    visit(treedef, 0, 3)
    return found
