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
from torch.utils._python_dispatch import _get_current_dispatch_mode, _pop_mode_temporarily

from fluxlike._private import functorch
from fluxlike._private.dispatch import may_draw

__all__ = ["cond", "draws", "has_value", "keep", "lift", "record", "recording", "scan", "unrecorded", "watched"]


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
    with ExitStack() as stack:
        while watched():
            stack.enter_context(_pop_mode_temporarily())
        yield


def has_value(x: Tensor, /) -> bool:
    """Whether a tensor has a value that Python may branch on: neither fake, nor a batch, nor recorded."""
    seen = functorch.at_level(x, 0)
    return (
        seen is not None
        and not seen.is_meta
        and not isinstance(seen, FakeTensor)
        and proxy_tensor.get_proxy_mode() is None
    )


def record(f: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], /) -> tuple[GraphModule, list[Tensor]]:
    """The operations of a function of tensors, and the tensors that it reaches by a closure."""
    graph = proxy_tensor.make_fx(f, _allow_non_fake_inputs=True)(*inputs)
    graph.graph.eliminate_dead_code()
    found = [getattr(graph, n.target) for n in graph.graph.nodes if n.op == "get_attr"]
    return graph, list({id(x): x for x in found if isinstance(x, Tensor)}.values())


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
    return any(_may_draw(n) for n in graph.graph.nodes) or any(
        draws(part) for part in graph.children() if isinstance(part, GraphModule)
    )


def _may_draw(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and may_draw(node.target)


def scan(
    body: GraphModule, carry: Sequence[Tensor], xs: Sequence[Tensor], rest: Sequence[Tensor], /
) -> list[Tensor]:
    """A loop as one operation: the last carry, and what the body returns beside it, stacked."""
    inputs = _apart([*carry, *xs, *rest])
    n, m = len(carry), len(carry) + len(xs)
    with _unwatched():
        return list(torch.ops.higher_order.scan(body, inputs[:n], inputs[n:m], tuple(inputs[m:])))


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
