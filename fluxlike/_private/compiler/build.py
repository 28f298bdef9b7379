"""From a recorded graph to something that runs: by Inductor, or as it is where nothing can compile it."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._inductor import config
from torch._inductor.compile_fx import _recursive_joint_graph_passes, compile_fx_inner
from torch._inductor.cpp_builder import get_cpp_compiler
from torch._inductor.exc import InvalidCxxCompiler
from torch._inductor.virtualized import V
from torch._ops import HigherOrderOperator
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fluxlike._private.compiler.freezing import freeze, freezing
from fluxlike._private.compiler.functional import functional
from fluxlike._private.compiler.memory import keeps_strides, origins
from fluxlike._private.compiler.operators import settle
from fluxlike._private.compiler.passes import choose_kernels
from fluxlike._private.compiler.trace import Recorded

__all__ = ["build"]

Run = Callable[[list[Tensor]], Sequence[Any]]

_OPTIONS: dict[str, Any] = {
    "size_asserts": False,  # the guard of a trace has looked
    "alignment_asserts": False,
    "max_fusion_buffer_group_pairwise_attempts": 8,  # of 64: the same kernels in three quarters of the time
    "keep_output_stride": False,  # results may stay in the layout in which they were computed
}

_caching: Any = torch.compiler.config
_said = False


def build(recorded: Recorded, targets: dict[int, int], *, frozen: bool = False) -> Run:
    """Something to call with a list of inputs, which it may empty, that returns the results.

    Args:
        recorded: the graph.
        targets: from the number of a result to that of the input whose memory it is written over; such a
            result comes back as None.
        frozen: whether the captured tensors become constants, and are no inputs. (default: False)
    """
    if not _results(recorded.module):
        return lambda inputs: ()
    module, compiles = functional(recorded), _can_compile()
    _allow_loops(recorded, module)
    if not (frozen and compiles):
        _write_over(module, targets, always=compiles)
    captured = recorded.captured if frozen else []
    if not compiles:
        constants = [x.detach().clone() for x in captured]
        return lambda inputs: module(*inputs, *constants)
    with (
        tracing(TracingContext(recorded.mode)),
        V.set_fake_mode(recorded.mode),
        torch.no_grad(),
        config.patch(_OPTIONS),
        _caching.patch(cache_key_tag=_tag()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # parts of the compiler warn of each other
        _recursive_joint_graph_passes(module)
        if not frozen:
            choose_kernels(module)
            compiled: Any = compile_fx_inner(module, recorded.inputs)
            return compiled
        inputs = recorded.inputs[: len(recorded.inputs) - len(captured)]
        with freezing(recorded.mode):
            freeze(module, inputs, captured, recorded.mode, strict=keeps_strides(recorded.module))
            _write_over(module, targets, always=True)  # what is folded would fold its results too
            compiled = compile_fx_inner(module, inputs, is_inference=True, layout_opt=True)
    return compiled


@cache
def _tag() -> str:
    """What names the kernels that Inductor keeps on disk, beside their graph: how we have it compute ours."""
    files = sorted(Path(__file__).parents[1].rglob("*.py"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    return f"{_caching.cache_key_tag}fluxlike-{digest[:16]}"


def _allow_loops(recorded: Recorded, module: GraphModule) -> None:
    """Let Inductor count the turns of a recorded loop, for which it asks numbers of fake tensors."""
    if any(isinstance(node.target, HigherOrderOperator) for node in module.graph.nodes):
        recorded.mode.shape_env = recorded.mode.shape_env or ShapeEnv()
        recorded.mode.allow_scalar_outputs = True


def _results(module: GraphModule) -> list[Any]:
    (output,) = module.graph.find_nodes(op="output")
    return list(output.args[0])


def _write_over(module: GraphModule, targets: dict[int, int], *, always: bool) -> None:
    """Write results over the memory of inputs, and part the others from inputs and from each other.

    Args:
        module: the graph.
        targets: as in `build`.
        always: whether to take no result for one that lies apart, since the compiler may bring them together.
    """
    graph = module.graph
    (output,) = graph.find_nodes(op="output")
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    results = list(output.args[0])
    found = origins(module)
    taken: set[Node] = set(inputs)
    with graph.inserting_before(output):
        for k, node in enumerate(results):
            if not isinstance(node, Node) or not isinstance(node.meta.get("val"), Tensor):
                continue  # a size
            if always or k in targets or found[node] & taken:
                results[k] = graph.call_function(settle, (node,))
                results[k].meta = dict(node.meta)
            else:
                taken |= found[node]
        for k, i in targets.items():
            new = graph.call_function(torch.ops.aten.copy_.default, (inputs[i], results[k]))
            new.meta = dict(results[k].meta)
            results[k] = None
    output.args = (tuple(results),)
    module.recompile()


def _can_compile() -> bool:
    """Whether there is a C++ compiler, which Inductor needs; says so once if not."""
    global _said
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        if not _said:
            _said = True
            warnings.warn(
                "jit found no C++ compiler, so it runs the traced graph operation by operation; install g++ "
                "or clang, or name one in the environment variable CXX",
                RuntimeWarning,
                stacklevel=2,
            )
        return False
    return True
