"""Recording a graph once more: without writes to memory, decomposed, and in the layouts of fast kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch._inductor.lowering  # the decompositions ask for it
from torch import Tensor
from torch._decomp import get_decompositions
from torch._functorch.compile_utils import fx_graph_cse, rand_ops
from torch._inductor.decomposition import select_decomp_table
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fluxlike._private.compiler.memory import keeps_strides
from fluxlike._private.compiler.operators import realize
from fluxlike._private.compiler.trace import Recorded
from fluxlike._private.dispatch import may_draw

__all__ = ["functional"]

aten, prims = torch.ops.aten, torch.ops.prims

_LARGEST_WINDOW = 25  # of Inductor's own pools

_CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


def functional(recorded: Recorded) -> GraphModule:
    """The graph that Inductor gets: the same inputs and outputs, no operation that writes."""
    table = dict(select_decomp_table())
    # Inductor reads the window of each entry, which is faster than the decomposition's scattered sums.
    table.pop(aten.max_pool2d_with_indices_backward.default, None)
    table[aten.argmax.default], table[aten.argmin.default] = _of_all(aten.argmax), _of_all(aten.argmin)
    runner = Interpreter if keeps_strides(recorded.module) else _Layouts
    run = torch.func.functionalize(runner(recorded.module).run, remove="mutations")
    extra = get_decompositions(_unknown(recorded.module, table))
    with recorded.mode:
        module = make_fx(run, decomposition_table=table | extra, tracing_mode="real")(*recorded.inputs)
        if extra and any(map(_writes, module.graph.nodes)):  # torch's own way to take one apart
            module = make_fx(run, decomposition_table=table, tracing_mode="real")(*recorded.inputs)
    module.graph.eliminate_dead_code()
    if all(map(_merges, module.graph.nodes)):
        module.graph = fx_graph_cse(module.graph)
    module.recompile()
    return module


def _unknown(module: GraphModule, table: dict[Any, Any]) -> list[Any]:
    """Operations that Inductor can't write, and would complain of if torch can take them apart."""
    operations = {n.target for n in module.graph.nodes if isinstance(n.target, torch._ops.OpOverload)}
    known = {*table, *torch._inductor.lowering.lowerings, *torch._inductor.lowering.fallbacks}
    return [o for o in operations if o.namespace == "aten" and o not in known]


def _writes(n: Node) -> bool:
    """Whether a node writes to memory, which would be taken for useless here."""
    return isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable


def _of_all(find: Any) -> Callable[..., Any]:
    """Where the largest of all entries stands, counted by rows: Inductor counts as they lie in memory."""

    def decomposed(x: Tensor, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is not None or x.ndim < 2:
            return NotImplemented
        place = find(x.reshape(-1), 0)
        return place.reshape([1] * x.ndim) if keepdim else place

    return decomposed


def _merges(n: Node) -> bool:
    """Whether the elimination of common subexpressions knows what to do with it: not with every draw."""
    draws = isinstance(n.target, torch._ops.OpOverload) and may_draw(n.target)
    return not draws or n.target.overloadpacket in rand_ops  # type: ignore[union-attr]


class _Layouts(Interpreter):
    """Runs a graph with convolutions in channels-last, as oneDNN's kernels are fastest.

    The whole graph follows from there, since strides are handed on; a second layout later on would
    copy around every convolution instead.
    """

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self._offsets: dict[Node, Tensor] = {}

    def run_node(self, n: Node) -> Any:
        if n.op == "call_function":
            if n.target in _CONVOLUTIONS:
                return self._convolution(n)
            if n.target is aten.view.default:
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                return aten.reshape.default(*args, **kwargs)  # strides may be others than when recorded
            if n.target is aten.max_pool2d_with_indices.default:
                return self._pool(n)
            if n.target is aten.max_pool2d_with_indices_backward.default:
                return self._pool_backward(n)
        return super().run_node(n)

    def _convolution(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        assert callable(n.target)
        tensors = 3 if n.target is aten.convolution_backward.default else 2
        new = [_channels_last(x) for x in args[:tensors]]
        return n.target(*new, *args[tensors:], **kwargs)

    def _pool(self, n: Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        window = _window(*args, **kwargs)
        if window is None:
            return super().run_node(n)
        x = args[0]
        options = (window, window, [0, 0], [1, 1], False)
        values, offsets = prims._low_memory_max_pool_with_offsets.default(x, *options)
        # Kept as small integers: the backward pass would search each window once more.
        self._offsets[n] = realize(offsets)
        shape = list(x.shape[-2:])
        indices = prims._low_memory_max_pool_offsets_to_indices.default(
            self._offsets[n], window, shape, window, [0, 0], [1, 1]
        )
        return values, indices

    def _pool_backward(self, n: Node) -> Any:
        indices = n.args[7] if len(n.args) > 7 else n.kwargs["indices"]
        pool = indices.args[0] if isinstance(indices, Node) else None
        args, _ = self.fetch_args_kwargs_from_env(n)
        offsets = self._offsets.get(pool) if isinstance(pool, Node) else None
        if offsets is None:
            return super().run_node(n)
        return _unpool(args[0], offsets, args[2], args[1].shape)


def _channels_last(x: Any) -> Any:
    if not isinstance(x, Tensor) or x.ndim != 4 or x.device.type != "cpu":
        return x
    return x.contiguous(memory_format=torch.channels_last)


def _window(
    x: Tensor,
    kernel: list[int],
    stride: list[int] | None = None,
    padding: list[int] | int = 0,
    dilation: list[int] | int = 1,
    ceil_mode: bool = False,
) -> list[int] | None:
    """The window of a pool whose windows tile the image, so that each entry lies in one; else None."""
    size = list(kernel) * 2 if len(kernel) == 1 else list(kernel)
    step = list(stride) if stride else size
    step = step * 2 if len(step) == 1 else step
    plain = not any(_pair(padding)) and _pair(dilation) == [1, 1] and not ceil_mode
    tiles = x.ndim == 4 and x.device.type == "cpu" and step == size and size[0] * size[1] <= _LARGEST_WINDOW
    if not (plain and tiles and x.shape[-2] % size[0] == 0 and x.shape[-1] % size[1] == 0):
        return None
    return size


def _pair(value: list[int] | int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def _unpool(g: Tensor, offsets: Tensor, window: list[int], shape: torch.Size) -> Tensor:
    """Gradients of maxima at the places where the maxima stood, zero elsewhere."""
    height, width = _pair(window)
    n, c, rows, columns = g.shape
    # Channels stay innermost: (n, rows, height, columns, width, c).
    # Compared as floats: vectors of small integers have no fast way to choose among floats.
    taken = offsets.to(g.dtype).permute(0, 2, 3, 1).reshape(n, rows, 1, columns, 1, c)
    inside = torch.arange(height * width, dtype=g.dtype, device=g.device).view(1, 1, height, 1, width, 1)
    spread = g.permute(0, 2, 3, 1).reshape(n, rows, 1, columns, 1, c)
    full = torch.where(taken == inside, spread, torch.zeros((), dtype=g.dtype, device=g.device))
    return full.reshape(n, shape[-2], shape[-1], c).permute(0, 3, 1, 2)
