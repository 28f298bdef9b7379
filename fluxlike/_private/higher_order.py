"""The one file that records loops and branches as one operation each (private parts of torch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.autograd import forward_ad
from torch.fx import GraphModule, Node
from torch.fx.experimental import proxy_tensor
from torch.utils._python_dispatch import (
    _get_current_dispatch_mode,
    _get_current_dispatch_mode_stack,
    _pop_mode_temporarily,
)

from fluxlike._private import functorch
from fluxlike._private.dispatch import may_draw

__all__ = [
    "cond",
    "draws",
    "fits",
    "has_value",
    "keep",
    "lift",
    "names",
    "record",
    "recording",
    "scan",
    "unrecorded",
    "watched",
]


def recording() -> bool:
    """Whether `make_fx` records the operations called here, with no other transform in between."""
    return (
        proxy_tensor.get_proxy_mode() is not None
        and not functorch.active()
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
    )


def unrecorded() -> AbstractContextManager[Any]:
    """Leave what is called inside out of the recording."""
    return proxy_tensor.disable_proxy_modes_tracing()


def watched() -> bool:
    """Whether a mode beside those of the trace sees each operation, and would not see inside a loop."""
    return not isinstance(_get_current_dispatch_mode(), (type(None), *_OF_THE_TRACE))


_OF_THE_TRACE = (proxy_tensor.ProxyTorchDispatchMode, FakeTensorMode)


@contextmanager
def _unwatched() -> Iterator[None]:
    """Leave the modes of the trace alone, which are the ones that loops and branches know."""
    with ExitStack() as stack:
        while watched():
            stack.enter_context(_pop_mode_temporarily())
        for mode in _get_current_dispatch_mode_stack():
            if isinstance(mode, FakeTensorMode):
                _introduce(type(mode))
        yield


def _introduce(mode: type[FakeTensorMode]) -> None:
    """Let loops and branches be called in a mode of fake tensors that is a class of its own."""
    operations = torch.ops.higher_order
    for operation in (operations.scan, operations.cond, operations.while_loop):
        if mode not in operation.python_key_table:
            operation.py_impl(mode)(operation.python_key_table[FakeTensorMode])


def has_value(x: Tensor, /) -> bool:
    """Whether a tensor has a value that Python may branch on: neither fake, nor a batch, nor recorded."""
    seen = functorch.at_level(x, 0)
    return (
        seen is not None
        and not seen.is_meta
        and not isinstance(seen, FakeTensor)
        and proxy_tensor.get_proxy_mode() is None
    )


def record(
    f: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], /
) -> tuple[GraphModule, list[Tensor]]:
    """The operations of a function of tensors, and the tensors that it reaches by a closure."""
    graph = proxy_tensor.make_fx(f, _allow_non_fake_inputs=True)(*inputs)
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.detach.default):
        node.replace_all_uses_with(node.args[0])  # autograd is done with; it would be a copy in a loop
    graph.graph.eliminate_dead_code()
    found = [getattr(graph, n.target) for n in graph.graph.nodes if n.op == "get_attr"]
    return graph, list({id(x): x for x in found if isinstance(x, Tensor)}.values())


def names() -> list[str]:
    """The names of all that the innermost recording has recorded so far."""
    mode = proxy_tensor.get_proxy_mode()
    return [] if mode is None else [n.name for n in mode.tracer.graph.nodes]


def lift(graph: GraphModule, closed_over: Sequence[Tensor], /) -> GraphModule:
    """The graph with tensors that it reached by a closure as further inputs."""
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    reads = [n for n in graph.graph.nodes if n.op == "get_attr"]
    for i, x in enumerate(closed_over):
        with graph.graph.inserting_after(inputs[-1]) if inputs else graph.graph.inserting_before():
            new = graph.graph.placeholder(f"closed_over_{i}")
        inputs.append(new)
        for read in [n for n in reads if getattr(graph, n.target) is x]:
            new.meta = dict(read.meta)
            read.replace_all_uses_with(new)
            graph.graph.erase_node(read)
            reads.remove(read)
    graph.recompile()
    return graph


def keep(graph: GraphModule, count: int, /) -> None:
    """Drop all but the first outputs of a graph."""
    (output,) = (n for n in graph.graph.nodes if n.op == "output")
    output.args = (output.args[0][:count],)
    graph.graph.eliminate_dead_code()
    graph.recompile()


def draws(graph: GraphModule, /) -> bool:
    """Whether an operation of the graph draws from torch's generators."""
    return any(isinstance(n.target, torch._ops.OpOverload) and may_draw(n.target) for n in _nodes(graph))


def fits(graph: GraphModule, /) -> bool:
    """Whether a graph can be one operation.

    Inductor leaves out complex loops, or computes them wrongly; and sizes that are not known would have to
    be inputs of the operation.
    """
    values = [x for x in (n.meta.get("val") for n in _nodes(graph)) if isinstance(x, Tensor)]
    return not any(x.is_complex() or _has_symbols(x) for x in values)


def _has_symbols(x: Tensor) -> bool:
    return any(isinstance(n, torch.SymInt) for n in x.shape)


def _nodes(graph: GraphModule) -> Iterator[Node]:
    for module in graph.modules():
        if isinstance(module, GraphModule):
            yield from module.graph.nodes


def scan(
    body: GraphModule, carry: Sequence[Tensor], xs: Sequence[Tensor], rest: Sequence[Tensor], /
) -> list[Tensor]:
    """A loop as one operation: the last carry, and what the body returns beside it, stacked."""
    inputs = _apart([*carry, *xs, *rest])
    n, m = len(carry), len(carry) + len(xs)
    count = _pad(body)
    with _unwatched():
        found = torch.ops.higher_order.scan(body, inputs[:n], inputs[n:m], tuple(inputs[m:]))
    return list(found)[:count]


def _pad(graph: GraphModule) -> int:
    """Give a graph a second output, without which Inductor takes the one for the list; how many it had."""
    (output,) = (n for n in graph.graph.nodes if n.op == "output")
    outputs = list(output.args[0])
    if len(outputs) == 1:
        with graph.graph.inserting_before(output):
            padding = graph.graph.call_function(torch.ops.aten.zeros.default, ([],))
        output.args = ([*outputs, padding],)
        graph.recompile()
    return len(outputs)


def cond(pred: Tensor, yes: GraphModule, no: GraphModule, inputs: Sequence[Tensor], /) -> list[Tensor]:
    """A branch as one operation."""
    pred, *inputs = _apart([pred, *inputs])
    with _unwatched():
        return list(torch.ops.higher_order.cond(pred, yes, no, tuple(inputs)))


def _apart(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs as the operations take them: of the mode of the trace, and no two in one memory."""
    newest: dict[int, Tensor] = {}  # by the id of the tensor
    result: list[Tensor] = []
    for given in inputs:
        x = newest.get(id(given), given)
        x = x if isinstance(x, FakeTensor) else x.detach()
        if any(x.untyped_storage() is y.untyped_storage() for y in result):
            x = x.clone()  # of the last copy: two copies of one tensor would be made one again
        newest[id(given)] = x
        result.append(x)
    return result
