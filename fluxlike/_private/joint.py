"""Dividing a turn of a loop and its derivative, recorded together, in two graphs (of torch.fx)."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

__all__ = ["Joint", "Parts", "divide"]


class Joint(NamedTuple):
    """A turn of a loop and its derivative as one graph.

    Its inputs are the carry, one x of each of the xs, the cotangents of the carry and the sums so far,
    the cotangents of what is stacked, and what is the same in every turn. Its outputs are those of the
    turn, and then those of the derivative.

    Attributes:
        graph: the graph.
        forward: the names of the nodes of the forward pass.
        inputs: the number of inputs of each of these kinds.
        outputs: the number of outputs of the turn.
    """

    graph: GraphModule
    forward: set[str]
    inputs: Sequence[int]
    outputs: int


class Parts(NamedTuple):
    """The two graphs.

    Attributes:
        forward: from carry, xs and what is the same in every turn to the outputs, and more that is kept.
        backward: from the cotangents of the carry and the sums, xs, what was kept, the cotangents of what
            is stacked, and what is the same in every turn, to the outputs of the derivative.
        xs: which of the xs the backward graph takes.
        kept: which of the forward graph's outputs it takes.
    """

    forward: GraphModule
    backward: GraphModule
    xs: list[int]
    kept: list[int]


def divide(joint: Joint, /) -> Parts | None:
    """Divide where the backward pass began; None where operations write to memory.

    Kept is what the backward pass takes of the forward pass. But a view is taken anew of what it is a view
    of, and what depends on nothing that changes from turn to turn is computed anew.
    """
    nodes = list(joint.graph.graph.nodes)
    calls = [x for x in nodes if x.op == "call_function"]
    if any(_writes(x) for x in calls):
        return None
    groups = _split([x for x in nodes if x.op == "placeholder"], joint.inputs)
    carry, xs, cotangents, by_stacked, same = groups
    results = nodes[-1].args[0]
    outputs, derived = list(results[: joint.outputs]), list(results[joint.outputs :])
    forward = [x for x in calls if x.name in joint.forward]
    anew = _computed_anew(forward, same)
    stop = {*carry, *(x for x in forward if x not in anew)}
    wanted = _ancestors(derived, stop)
    kept = [x for x in nodes if x in wanted and x in stop]
    # A loop needs something to loop over.
    taken = [i for i, x in enumerate(xs) if x in wanted] or ([] if kept or by_stacked else [0])
    # What is stacked anyway is not kept a second time.
    stacked = {_source(x): i for i, x in enumerate(outputs) if i >= len(carry)}
    more = [x for x in kept if x not in stacked]
    places = [stacked[x] if x in stacked else len(outputs) + more.index(x) for x in kept]
    first = _copy(joint.graph, [*carry, *xs, *same], forward, [*outputs, *more])
    again = [x for x in calls if x in wanted and x not in stop]
    rows = [*(xs[i] for i in taken), *kept, *by_stacked]
    return Parts(first, _copy(joint.graph, [*cotangents, *rows, *same], again, derived), taken, places)


def _source(x: Node) -> Node:
    return x.args[0] if x.target is torch.ops.aten.clone.default else x  # type: ignore[return-value]


def _split(items: Sequence[Node], sizes: Sequence[int]) -> list[list[Node]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(items[start : start + size]))
        start += size
    parts[-1] += items[start:]  # what was lifted into the graph afterwards
    return parts


_WRITE_SILENTLY = {
    torch.ops.aten.native_batch_norm.default,
    torch.ops.aten.cudnn_batch_norm.default,
    torch.ops.aten.miopen_batch_norm.default,
}


def _writes(x: Node) -> bool:
    return x.target in _WRITE_SILENTLY or (
        isinstance(x.target, torch._ops.OpOverload) and x.target._schema.is_mutable
    )


def _computed_anew(forward: Iterable[Node], same: Iterable[Node]) -> set[Node]:
    fixed, anew = set(same), set()
    for x in forward:
        operation = x.target if isinstance(x.target, torch._ops.OpOverload) else None
        sources = [i for i in x.all_input_nodes if i.op != "get_attr"]
        if all(i in fixed for i in sources):
            fixed.add(x)
            anew.add(x)
        elif _is_view(operation) or (x.target is operator.getitem and sources[0] in anew):
            anew.add(x)
    return anew


def _is_view(operation: torch._ops.OpOverload | None) -> bool:
    return operation is not None and (operation.is_view or operation is torch.ops.aten._unsafe_view.default)


def _ancestors(nodes: Iterable[Node], stop: set[Node]) -> set[Node]:
    """The nodes, and those that they are computed from, no further than some."""
    found: set[Node] = set()
    queue = list(nodes)
    while queue:
        x = queue.pop()
        if x not in found:
            found.add(x)
            if x not in stop:
                queue += x.all_input_nodes
    return found


def _copy(
    root: GraphModule, inputs: Sequence[Node], calls: Sequence[Node], outputs: Sequence[Node]
) -> GraphModule:
    """A graph of some nodes of another; each of its outputs has memory of its own."""
    graph = Graph()
    new: dict[Node, Node] = {}
    for x in inputs:
        new[x] = graph.placeholder(x.name)
        new[x].meta = dict(x.meta)
    for x in calls:
        for i in x.all_input_nodes:
            if i.op == "get_attr" and i not in new:
                new[i] = graph.node_copy(i)
        new[x] = graph.node_copy(x, lambda i: new[i])
    memory = {_memory(x) for x in inputs}
    results = []
    for x in outputs:
        y = new[x]
        if _memory(x) in memory:
            y = graph.call_function(torch.ops.aten.clone.default, (y,))
            y.meta = dict(x.meta)
        memory.add(_memory(x))
        results.append(y)
    graph.output(results)
    graph.eliminate_dead_code()
    return GraphModule(root, graph)


def _memory(x: Node) -> int:
    value = x.meta["val"]
    assert isinstance(value, Tensor)
    return id(value.untyped_storage())
