"""Convolutions of 3×3 by Winograd's minimal filtering, F(2×2, 3×3), where the weights are constants.

A tile of 2×2 outputs y follows from 4×4 inputs d and the kernel g by ``y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A``: 16
multiplications instead of 36. Over all channels the product in the middle is one of matrices for each of the
16 places, which a convolution of one tap in 16 groups computes. The transforms of inputs and outputs are sums
alone, so that the result is as exact as that of the direct form (Lavin & Gray 2015, arXiv 1509.09308,
section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fluxlike._private.compiler.passes import constant_node

__all__ = ["transformed_weight", "use_winograd", "winograd"]

aten = torch.ops.aten

_INPUT = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1))  # Bᵀ
_KERNEL = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))  # G
_OUTPUT = ((1, 1, 1, 0), (0, 1, -1, -1))  # Aᵀ

_TILE, _TAPS = 2, 4
_PLACES = _TAPS**2

_FEWEST_CHANNELS = 64  # with fewer, the transforms cost what the products save
_FEWEST_TILES = 32  # with fewer, reading the sixteen matrices costs more than reading nine
_LARGEST = 2**24  # bytes of what is transformed: beyond the caches, memory is what takes time


def use_winograd(module: GraphModule, mode: FakeTensorMode) -> None:
    """Rewrite those convolutions of a graph for which it pays.

    Args:
        module: a graph whose weights are constants; it is changed.
        mode: that of its fake tensors.
    """
    for node in module.graph.find_nodes(op="call_function", target=aten.convolution.default):
        weight = _constant(module, node.args[1])
        x = node.args[0].meta["val"]
        if weight is not None and _fits(node, x, weight):
            _rewrite(module, node, x, weight, mode)
    module.recompile()


def transformed_weight(weight: Tensor) -> Tensor:
    """``G g Gᵀ`` of each kernel, as the weight of a convolution of one tap in groups.

    Args:
        weight: (out, in, 3, 3).

    Returns:
        (16·out, in, 1, 1), rounded once from float64.
    """
    g = torch.tensor(_KERNEL, dtype=torch.float64, device=weight.device)
    places = torch.einsum("ia,ocab,jb->ijoc", g, weight.double(), g)
    return places.reshape(-1, weight.shape[1], 1, 1).to(weight.dtype)


def winograd(x: Tensor, weight: Tensor, bias: Tensor | None, pad: Sequence[int]) -> Tensor:
    """A convolution of 3×3 with stride 1.

    Args:
        x: (N, C, H, W).
        weight: as of `transformed_weight`.
        bias: (out,) or None.
        pad: zeros around the image, for each of its axes.

    Returns:
        (N, out, H', W'), channels last.
    """
    n, _, *size = x.shape
    out = weight.shape[0] // _PLACES
    final = [s + 2 * p - 2 for s, p in zip(size, pad, strict=True)]
    tiles = [-(-s // _TILE) for s in final]
    behind = [_TILE * t + 2 - s - p for s, t, p in zip(size, tiles, pad, strict=True)]
    d = F.pad(x, (pad[1], behind[1], pad[0], behind[0])).permute(0, 2, 3, 1)
    rows = _sums(_INPUT, [_every(d, k, tiles[0], 1) for k in range(_TAPS)])
    places = [v for r in rows for v in _sums(_INPUT, [_every(r, k, tiles[1], 2) for k in range(_TAPS)])]
    v = torch.cat(places, -1).permute(0, 3, 1, 2)
    m = F.conv2d(v, weight, groups=_PLACES).permute(0, 2, 3, 1).split(out, -1)
    by_column = zip(*(_sums(_OUTPUT, m[j::_TAPS]) for j in range(_TAPS)), strict=True)
    y = torch.stack([torch.stack(_sums(_OUTPUT, columns), 3) for columns in by_column], 2)
    y = y.reshape(n, _TILE * tiles[0], _TILE * tiles[1], out)[:, : final[0], : final[1]]
    y = y.contiguous().permute(0, 3, 1, 2)
    return y if bias is None else y + bias.view(-1, 1, 1)


def _every(x: Tensor, first: int, number: int, axis: int) -> Tensor:
    """One entry of each tile along an axis."""
    return torch.narrow(x, axis, first, _TILE * (number - 1) + 1)[
        (slice(None),) * axis + (slice(None, None, _TILE),)
    ]


def _sums(matrix: Sequence[Sequence[int]], terms: Sequence[Tensor]) -> list[Tensor]:
    """A matrix of signs times a vector of tensors."""
    found = []
    for row in matrix:
        signed = sorted(((sign, t) for sign, t in zip(row, terms, strict=True) if sign), key=lambda s: -s[0])
        total = signed[0][1] if signed[0][0] > 0 else -signed[0][1]
        for sign, t in signed[1:]:
            total = total + t if sign > 0 else total - t
        found.append(total)
    return found


def _constant(module: GraphModule, node: object) -> Tensor | None:
    """The value of a node that is a constant of the graph."""
    if not isinstance(node, Node) or node.op != "get_attr":
        return None
    value = getattr(module, str(node.target), None)
    return value if isinstance(value, Tensor) else None


def _fits(node: Node, x: Tensor, weight: Tensor) -> bool:
    given: Any = node.args
    _, _, _, stride, pad, dilation, transposed, _, groups = given
    plain = not transposed and groups == 1 and weight.ndim == 4 and tuple(weight.shape[2:]) == (3, 3)
    if not plain or set(stride) != {1} or set(dilation) != {1} or not set(pad) <= {0, 1}:
        return False
    if (
        weight.dtype != torch.float32
        or weight.device.type != "cpu"
        or not torch.backends.mkldnn.is_available()
    ):
        return False
    if not all(isinstance(s, int) for s in x.shape) or min(weight.shape[:2]) < _FEWEST_CHANNELS:
        return False
    n, _, *size = x.shape
    wanted = [s + 2 * p - 2 for s, p in zip(size, pad, strict=True)]
    tiles = n * (-(-wanted[0] // _TILE)) * (-(-wanted[1] // _TILE))
    return tiles >= _FEWEST_TILES and 4 * tiles * _PLACES * max(weight.shape[:2]) <= _LARGEST


def _rewrite(module: GraphModule, node: Node, x: Tensor, weight: Tensor, mode: FakeTensorMode) -> None:
    """Put the operations of `winograd` in the place of a node."""
    name = f"_winograd_{node.args[1]}"
    if not hasattr(module, name):  # once for a tied weight
        module.register_buffer(name, transformed_weight(weight))
    inputs: list[Any] = [node.args[0], name, *([node.args[2]] if isinstance(node.args[2], Node) else [])]
    pad: Any = node.args[4]
    fakes = [x, mode.from_tensor(getattr(module, name), static_shapes=True)]
    fakes += [b.meta["val"] for b in inputs[2:]]

    def conv(*tensors: Tensor) -> Tensor:
        x, weight, *bias = tensors
        return winograd(x, weight, bias[0] if bias else None, pad)

    with mode:
        inner = make_fx(conv, decomposition_table=select_decomp_table())(*fakes)
    inputs[1] = constant_node(module, name)
    with module.graph.inserting_before(node):
        values: Any = dict(zip(inner.graph.find_nodes(op="placeholder"), inputs, strict=True))
        result: Any = module.graph.graph_copy(inner.graph, values)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)
