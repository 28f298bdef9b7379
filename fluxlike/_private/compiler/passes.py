"""Choices of kernels in a graph that has no writes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from fluxlike._private.compiler.operators import matmul, realize

__all__ = ["choose_kernels", "constant_node", "pack_matrices"]

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn

_PRODUCTS = (aten.mm.default, aten.addmm.default)


def choose_kernels(module: GraphModule) -> None:
    """Rewrite parts of a graph that Inductor would run slowly on a CPU."""
    for node in list(module.graph.nodes):
        if node.op == "call_function":
            if node.target in _PRODUCTS:
                _choose_matmul(module, node)
            elif _feeds_loops(node):
                _keep(module, node)
    module.recompile()


def _value(node: object) -> Tensor | None:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return value if isinstance(value, Tensor) else None


def _feeds_loops(node: Node) -> bool:
    """Whether a number is computed here and read by a loop, which would compute it for each entry."""
    value = _value(node)
    if value is None or value.ndim or value.device.type != "cpu" or not value.is_floating_point():
        return False
    inputs = [_value(n) for n in node.all_input_nodes]
    if not inputs or any(x is None or x.ndim for x in inputs):
        return False
    users = [_value(n) for n in node.users]
    return any(x is None or x.ndim for x in users)


def _keep(module: GraphModule, node: Node) -> None:
    with module.graph.inserting_after(node):
        kept = module.graph.call_function(realize, (node,))
    kept.meta = dict(node.meta)
    node.replace_all_uses_with(kept, delete_user_cb=lambda user: user is not kept)


def _choose_matmul(module: GraphModule, node: Node) -> None:
    """oneDNN's product of matrices where the BLAS leaves half of the processor unused."""
    found = _slow_product(node)
    if found is None:
        return
    with module.graph.inserting_before(node):
        product = module.graph.call_function(matmul, found)
    _put(module, product, node)


def pack_matrices(module: GraphModule) -> None:
    """The same product for matrices that are constants of a graph, in the order in which its kernel reads."""
    for node in list(module.graph.nodes):
        found = _slow_product(node) if node.target in _PRODUCTS else None
        if found is None or found[1].op != "get_attr":
            continue
        a, b, bias = found
        rows = node.meta["val"].shape[0]
        name = f"_packed_{b.target}_for_{rows}"
        if not hasattr(module, name):  # once for a tied one
            weight = getattr(module, str(b.target)).T.contiguous()
            module.register_buffer(name, mkldnn._reorder_linear_weight(weight, rows))
        packed = constant_node(module, name)
        with module.graph.inserting_before(node):
            options: tuple[Any, ...] = (a, packed, bias, "none", [], "")
            product = module.graph.call_function(mkldnn._linear_pointwise.default, options)
        _put(module, product, node)
    module.recompile()


def constant_node(module: GraphModule, name: str) -> Node:
    """The one node of a constant, at the beginning of a graph."""
    found = [n for n in module.graph.find_nodes(op="get_attr") if n.target == name]
    if found:
        return found[0]
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        return module.graph.get_attr(name)


def _put(module: GraphModule, new: Node, old: Node) -> None:
    new.meta = dict(old.meta)
    old.replace_all_uses_with(new)
    module.graph.erase_node(old)


def _slow_product(node: Node) -> tuple[Node, Node, Node | None] | None:
    """The factors, and what is added, of a product that the BLAS would compute slowly."""
    if node.kwargs or not _blas_is_slow():
        return None
    bias, a, b = (None, *node.args) if node.target is aten.mm.default else node.args
    x, y = _value(a), _value(b)
    if x is None or y is None or x.dtype != torch.float32 or x.device.type != "cpu":
        return None
    shift = _value(bias)
    if bias is not None and (shift is None or shift.ndim != 1 or shift.shape[0] != y.shape[1]):
        return None
    sizes = (*x.shape, y.shape[1])
    if not all(isinstance(n, int) and n >= 16 for n in sizes) or sizes[0] * sizes[1] * sizes[2] < 2e6:
        return None  # the call of a kernel costs more than it saves
    return a, b, bias  # type: ignore[return-value]


@cache
def _blas_is_slow() -> bool:
    """Whether torch's BLAS is MKL, on a processor not of Intel's that has AVX-512.

    MKL uses AVX-512 on Intel's processors only; on others it runs its code for AVX2. Measured on an
    AMD EPYC of the fifth generation: oneDNN takes 0.44 to 0.56 of the time for float32.
    """
    if not torch.backends.mkl.is_available() or not torch.backends.mkldnn.is_available():
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
