"""Whose memory the values in a recorded graph lie in, and which inputs its operations write to."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.fx import GraphModule, Node

__all__ = ["keeps_strides", "origins", "written_inputs"]

aten = torch.ops.aten

#: Operations that read memory as it lies there.
_OF_STRIDES = frozenset(
    (
        aten.as_strided.default,
        aten.as_strided_.default,
        aten.resize_.default,
        aten.resize.default,
        aten.view.dtype,
        aten.view_as_complex.default,
    )
)


def origins(module: GraphModule) -> dict[Node, set[Node]]:
    """For each node those that made the memory of its value: itself, or by views others."""
    found: dict[Node, set[Node]] = {}
    for node in module.graph.nodes:
        shared: set[Node] = set()
        for part, _ in _shared(node):
            shared |= found.get(part, set())
        found[node] = shared or {node}
    return found


def written_inputs(module: GraphModule) -> dict[int, str]:
    """From the number of each input that is written to, itself or by a view of it, to the operation."""
    number = {node: i for i, node in enumerate(n for n in module.graph.nodes if n.op == "placeholder")}
    return {number[node]: operation for node, operation in _written(module).items() if node in number}


def keeps_strides(module: GraphModule) -> bool:
    """Whether results would be others if the values in a graph lay in memory in another way.

    That is where memory is read as it lies, and where what is written to a view has to show in the whole:
    of other strides, the view would be a copy.
    """
    found, written = origins(module), _written(module).keys()
    return any(
        n.target in _OF_STRIDES or (n.target is aten.view.default and found[n] & written)
        for n in module.graph.nodes
    )


def _written(module: GraphModule) -> dict[Node, str]:
    """The nodes whose memory is written to, and the first operation that does."""
    found = origins(module)
    written: dict[Node, str] = {}
    for node in module.graph.nodes:
        for part, writes in _shared(node):
            if writes:
                for origin in found[part]:
                    written.setdefault(origin, str(node.target))
    return written


def _shared(node: Node) -> Iterator[tuple[Node, bool]]:
    """The nodes whose memory the value of a node may share or that it writes to, and which."""
    for value, writes in _aliased(node):
        for part in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(part, Node):
                yield part, writes


def _aliased(node: Node) -> Iterator[tuple[Any, bool]]:
    if node.op != "call_function":
        return
    if node.target in (operator.getitem, aten._unsafe_view.default):
        yield node.args[0], False
        return
    schema = getattr(node.target, "_schema", None)
    for n, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None:
            value = node.args[n] if n < len(node.args) else node.kwargs.get(argument.name)
            yield value, argument.alias_info.is_write
