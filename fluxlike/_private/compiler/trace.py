"""Recording a function of tensors as a graph of aten operations, over fake tensors."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    GuardOnDataDependentSymNode,
    ShapeEnv,
    StatelessSymbolicContext,
)

from fluxlike._private.fake import unlogged
from fluxlike._private.pytree import map_tensors

__all__ = ["NEEDS_A_SHAPE", "NEEDS_A_VALUE", "Recorded", "Recorder", "lift_captured"]

#: What tracing raises where a function asks for the value of a tensor.
NEEDS_A_VALUE = (DataDependentOutputException, GuardOnDataDependentSymNode)

#: What it raises where the shape of a result depends on the values of a tensor.
NEEDS_A_SHAPE = (DynamicOutputShapeException,)

# These write to running statistics without saying so in their schemas; their decompositions say so.
_undeclared: dict[Any, Any] = get_decompositions(
    [
        torch.ops.aten.native_batch_norm,
        torch.ops.aten.cudnn_batch_norm,
        torch.ops.aten.miopen_batch_norm,
    ]
)


def _random_from(x: Tensor, low: int, high: int | None, *, generator: Any = None) -> Tensor:
    return x.copy_(torch.randint(low, 2**53 if high is None else high, x.shape, device=x.device))


# Code can't be written with its name, which is a word of Python.
_undeclared[getattr(torch.ops.aten.random_, "from")] = _random_from


@dataclass
class Recorded:
    """A graph, and what was recorded with it.

    Attributes:
        module: the graph; its inputs are the function's, then the captured tensors.
        inputs: the fake tensors that stood for the inputs.
        captured: tensors that the function used without getting them as arguments.
        mode: the mode that the fake tensors belong to.
    """

    module: GraphModule
    inputs: list[Tensor]
    captured: list[Tensor]
    mode: FakeTensorMode


# Their kernels refuse tensors of several dtypes; on fake tensors torch's shape functions do not.
_OF_ONE_DTYPE = {
    getattr(torch.ops.aten, name).default
    for name in ("addbmm", "addmm", "addmv", "baddbmm", "bmm", "convolution", "dot", "mm", "mv", "vdot")
}


class _Mode(FakeTensorMode):
    """Fake tensors for captured tensors, too, and the kernels' refusal of mixed dtypes.

    torch computes with captured tensors where no other tensor is around: it would write to them, and tell
    their values.
    """

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.lift_fns:  # that of a literal is its value
            args, kwargs = map_tensors(self._own, (args, kwargs or {}))
        if func in _OF_ONE_DTYPE:
            found = list(dict.fromkeys(str(x.dtype) for x in args if isinstance(x, Tensor)))
            if len(found) > 1:
                name = func.overloadpacket.__name__
                raise RuntimeError(f"{name} takes tensors of one dtype, found {' and '.join(found)}")
        return super().dispatch(func, types, args, kwargs or {})

    def _own(self, x: Tensor) -> Tensor:
        plain = type(x) in (Tensor, torch.nn.Parameter) and x.layout is torch.strided
        return self.fake_tensor_converter.from_real_tensor(self, x) if plain else x


_NO_VALUES: dict[str, Any] = {"allow_scalar_outputs": False, "allow_dynamic_output_shape_ops": False}


class Recorder:
    """Fake tensors for the inputs of one trace, and the trace.

    Args:
        tensors: the inputs.
        dynamic: from the numbers of the inputs whose sizes may change from call to call to the axes of these.
    """

    def __init__(
        self, tensors: Sequence[Tensor], dynamic: Mapping[int, Collection[int]] | None = None
    ) -> None:
        self.shapes = ShapeEnv(**_NO_VALUES) if dynamic else None
        self.mode = _Mode(allow_non_fake_inputs=True, shape_env=self.shapes)
        self.dynamic = sorted((i, axis) for i, axes in (dynamic or {}).items() for axis in axes)
        self.inputs = [self._fake(i, x, (dynamic or {}).get(i, ())) for i, x in enumerate(tensors)]

    def _fake(self, i: int, x: Tensor, axes: Collection[int]) -> Tensor:
        x = x.detach()
        if not axes:
            return self.mode.from_tensor(x, static_shapes=True)
        context: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(
            dynamic_sizes=[DimDynamic.DUCK if a in axes else DimDynamic.STATIC for a in range(x.ndim)]
        )
        return self.mode.from_tensor(x, symbolic_context=context, source=ConstantSource(f"input_{i}"))

    def record(self, f: Callable[..., Sequence[Tensor]]) -> Recorded:
        """Call the function with the fake inputs, and record what it does to them."""
        with self.mode, _quiet():
            module = make_fx(f, decomposition_table=_undeclared, tracing_mode="real")(*self.inputs)
        module.graph.eliminate_dead_code()
        captured = lift_captured(module)
        fakes = [self.mode.from_tensor(x.detach(), static_shapes=True) for x in captured]
        return Recorded(module, [*self.inputs, *fakes], captured, self.mode)

    def guard(self) -> Callable[[Sequence[Tensor]], bool]:
        """Whether a trace holds for other sizes of its dynamic inputs; to be made when all is compiled."""
        shapes, dynamic = self.shapes, self.dynamic
        if shapes is None:
            return lambda inputs: True
        symbols: Any = [self.inputs[i].shape[axis] for i, axis in dynamic]
        expression = shapes.produce_guards_expression(symbols)

        def holds(inputs: Sequence[Tensor]) -> bool:
            sizes = [inputs[i].shape[axis] for i, axis in dynamic]
            return expression is None or bool(shapes.evaluate_guards_expression(expression, sizes))

        return holds


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what fake tensors say beside: they log what they raise, and ask non-leaves for ``.grad``."""
    with unlogged(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")
        yield


_LITERAL = torch.ops.aten.lift_fresh_copy.default  # takes what ``torch.tensor(2.0)`` made from numbers


def _write_out(graph: Graph, node: Node, value: Tensor) -> None:
    """Make a number that stands in the function one of the graph, not a tensor that it gets."""
    for user in list(node.users):
        with graph.inserting_before(user):
            options: Any = {"dtype": value.dtype, "device": value.device, "pin_memory": False}
            number = graph.call_function(
                torch.ops.aten.full.default, (list(value.shape), value.item()), options
            )
        number.meta = dict(user.meta)
        user.replace_all_uses_with(number)
        graph.erase_node(user)
    graph.erase_node(node)


def lift_captured(module: GraphModule) -> list[Tensor]:
    """Make the tensors that a graph holds its last inputs, each once, and return them."""
    graph = module.graph
    captured: list[Tensor] = []
    last = [n for n in graph.nodes if n.op == "placeholder"][-1:]
    inputs: dict[int, Any] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        value: Any = module
        for part in str(node.target).split("."):
            value = getattr(value, part)
        if not isinstance(value, Tensor):
            continue
        if value.numel() == 1 and all(user.target is _LITERAL for user in node.users):
            _write_out(graph, node, value)
            continue
        if id(value) not in inputs:
            where = graph.inserting_after(last[0]) if last else graph.inserting_before()
            with where:
                fresh = graph.placeholder(f"captured_{len(captured)}")
            fresh.meta = dict(node.meta)
            last = [fresh]
            inputs[id(value)] = fresh
            captured.append(value)
        node.replace_all_uses_with(inputs[id(value)])
        graph.erase_node(node)
    module.recompile()
    return captured
