"""Which inputs of a recorded graph its operations write to."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

from torch.fx import GraphModule, Node

__all__ = ["written_inputs"]


def written_inputs(module: GraphModule) -> dict[int, str]:
    """From the number of each input that is written to, itself or by a view of it, to the operation."""
    memory: dict[Node, set[int]] = {}  # the inputs whose memory the value of a node may share
    written: dict[int, str] = {}
    for node in module.graph.nodes:
        if node.op == "placeholder":
            memory[node] = {len(memory)}
        elif node.op == "call_function":
            shared: set[int] = set()
            for value, writes in _aliased(node):
                for part in value if isinstance(value, (list, tuple)) else [value]:
                    touched = memory.get(part, set()) if isinstance(part, Node) else set()
                    shared |= touched
                    if writes:
                        written.update((i, str(node.target)) for i in touched if i not in written)
            if shared:
                memory[node] = shared
    return written


def _aliased(node: Node) -> Iterator[tuple[Any, bool]]:
    """The arguments of an operation whose memory its result shares or that it writes to, and which."""
    if node.target is operator.getitem:
        yield node.args[0], False
    schema = getattr(node.target, "_schema", None)
    for n, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.alias_info is not None:
            value = node.args[n] if n < len(node.args) else node.kwargs.get(argument.name)
            yield value, argument.alias_info.is_write
