"""Recording one call: the graph, and where each leaf of the result comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optree
import torch
from torch import Tensor

from fluxlike._private.fake import is_stand_in
from fluxlike.scope import seeded
from fluxlike.scope.seeded import Draws
from fluxlike.transforms.jit.call import Signature
from fluxlike.transforms.jit.numbers import Numbers
from fluxlike.transforms.jit.refusals import (
    explain,
    require_attributes_unchanged,
    require_no_writes,
    require_result,
)
from fluxlike.trees.leaves import Assigned
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["Out", "Record", "record"]


class Out(NamedTuple):
    """Where one leaf of the result comes from: exactly one of the first three is given.

    Attributes:
        result: the number of a result of the graph.
        leaf: the number of a leaf of the call, which is handed on.
        constant: a value.
        assigned: whether it is wrapped as `Assigned`.
    """

    result: int | None
    leaf: int | None
    constant: Any
    assigned: bool


class Record:
    """What calling the function with stand-ins showed.

    Attributes:
        graph: what was recorded.
        recorder: that which recorded it.
        outs: where each leaf of the result comes from.
        treedef: the structure of the result.
        drawn: how much was drawn from the key in scope.
    """

    graph: Any
    recorder: Any
    outs: list[Out]
    treedef: optree.PyTreeSpec
    drawn: int = 0


def record(
    call: Callable[[Any], Any], signature: Signature, inputs: Sequence[Tensor], draws: Draws | None
) -> Record:
    """Record one call over fake tensors.

    Args:
        call: the function, of the tree of its arguments.
        signature: that of the call.
        inputs: tensors like those of the call.
        draws: those in scope; the key and its count are further inputs then.

    Raises:
        RuntimeError: the function asks for the value of a tensor.
        ValueError: it changes an argument, or a tensor that it closes over.
        TypeError: it returns a function that holds what it computed.
    """
    from fluxlike._private.compiler.trace import Recorder

    drawn = draws.as_inputs() if draws is not None else ()
    noted = Record()

    def flat(*fakes: Tensor) -> list[Any]:
        own = fakes[: len(inputs)]
        leaves = signature.rebuilt(own)
        tree = signature.treedef.unflatten(leaves)
        with Numbers(own[len(signature.tensors) :]):
            if draws is None:
                out = call(tree)
            else:
                scope = Draws.from_inputs(*fakes[len(inputs) :])
                token = seeded.enter(scope)
                try:
                    out = call(tree)
                finally:
                    seeded.leave(token)
                noted.drawn = scope.mark()
        require_attributes_unchanged(signature, tree, leaves)
        return _note(noted, out, signature, own)

    noted.recorder = Recorder([*inputs, *drawn], signature.dynamic)
    try:
        noted.graph = noted.recorder.record(flat)
    except Exception as error:
        explain(error)
        if signature.dynamic:  # the same error with the sizes of this call, not with symbols for them
            Recorder([*inputs, *drawn]).record(flat)
        raise
    require_no_writes(noted.graph, signature)
    return noted


def _note(noted: Record, out: Any, signature: Signature, inputs: Sequence[Tensor]) -> list[Any]:
    """Find out what each leaf of the result is, and return what the graph is to compute."""
    leaves, noted.treedef = flatten(out)
    require_result(leaves, structure_of(noted.treedef).paths)
    changing = (np.ndarray, set, bytearray)  # the call's own is handed on, not that of the trace
    statics = zip(signature.static, signature.statics, strict=True)
    handed_on = {id(x): i for i, x in statics if isinstance(x, changing)}
    for i, k in reversed(signature.input_at.items()):
        handed_on[id(inputs[k])] = i
    results: dict[int, int] = {}
    computed: list[Any] = []
    noted.outs = []
    for x in leaves:
        assigned = isinstance(x, Assigned)
        value = x.value if assigned else x
        if id(value) in handed_on:
            noted.outs.append(Out(None, handed_on[id(value)], None, assigned))
        elif _is_computed(value):
            if id(value) not in results:
                results[id(value)] = len(computed)
                computed.append(value)
            noted.outs.append(Out(results[id(value)], None, None, assigned))
        else:
            value = bool(value) if isinstance(value, torch.SymBool) else value
            noted.outs.append(Out(None, None, value, assigned))
    return computed


def _is_computed(x: Any) -> bool:
    """Whether a value differs from call to call: a tensor that is not closed over, or a size."""
    return is_stand_in(x) if isinstance(x, Tensor) else isinstance(x, (torch.SymInt, torch.SymFloat))
