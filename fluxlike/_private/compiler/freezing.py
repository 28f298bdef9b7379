"""Making constants of a graph's captured tensors: folding what follows from them, and packing weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._functorch.compile_utils import fx_graph_cse
from torch._inductor import config
from torch._inductor.compile_fx import fake_tensor_prop
from torch._inductor.constant_folding import constant_fold, replace_node_with_constant
from torch._inductor.freezing import convert_conv_weights_to_channels_last, record_has_frozen_params
from torch._inductor.freezing_utils import enter_freezing
from torch._inductor.fx_passes.freezing_patterns import freezing_passes
from torch._inductor.fx_passes.post_grad import view_to_reshape
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node

from fluxlike._private.compiler.passes import pack_matrices
from fluxlike._private.compiler.winograd import use_winograd

__all__ = ["freeze", "freezing"]

aten = torch.ops.aten

#: What has its weights packed, unless it is of one of these dtypes.
_PACKED = (aten.convolution.default, aten.mm.default, aten.addmm.default, aten.mkldnn_rnn_layer.default)
_NOT_PACKED = (torch.float64, torch.complex64, torch.complex128)


@contextmanager
def freezing(mode: FakeTensorMode) -> Iterator[None]:
    """What surrounds the compilation of a graph with constants in it."""
    with (
        config.patch(freezing=True),
        enter_freezing(),
        mock.patch.object(mode, "allow_non_fake_inputs", True),
    ):
        yield


def freeze(
    module: GraphModule,
    inputs: Sequence[Tensor],
    captured: Sequence[Tensor],
    mode: FakeTensorMode,
    *,
    strict: bool = False,
) -> None:
    """Make constants of the last inputs of a graph, compute what follows from them, and pack weights.

    Args:
        module: a graph without writes; it is changed, and keeps the first inputs alone.
        inputs: the fake tensors of those.
        captured: the values of the others.
        mode: that of the fake tensors.
        strict: whether values have to lie in memory as they were recorded, so that no kernel of another
            layout may be chosen. (default: False)
    """
    last = module.graph.find_nodes(op="placeholder")[len(inputs) :]
    for node, value in zip(last, captured, strict=True):
        replace_node_with_constant(module, node, value.detach().clone())  # the caller's may be written to
    constant_fold(module)
    if not strict:
        view_to_reshape(module)
        fake_tensor_prop(module, inputs, True)
        use_winograd(module, mode)
        fake_tensor_prop(module, inputs, True)
        convert_conv_weights_to_channels_last(module)
        module.graph = fx_graph_cse(module.graph)
        module.recompile()
        pack_matrices(module)
        if not any(map(_can_not_be_packed, module.graph.nodes)):
            freezing_passes(module, inputs)
    constant_fold(module)
    fake_tensor_prop(module, inputs, True)
    _tell_numbers_apart(module)
    record_has_frozen_params(module)


def _can_not_be_packed(node: Node) -> bool:
    """Whether the passes would pack a weight of this operation, and fail."""
    value = node.meta.get("val") if node.target in _PACKED else None
    return isinstance(value, Tensor) and value.dtype in _NOT_PACKED


def _tell_numbers_apart(module: GraphModule) -> None:
    """Have Inductor's cache look at the values of 0-d constants, which it writes into its code."""
    for node in module.graph.find_nodes(op="get_attr"):
        value: Any = getattr(module, str(node.target))
        if isinstance(value, Tensor) and not value.is_mkldnn and value.ndim == 0:
            value._is_frozen_param = False  # type: ignore[attr-defined]
