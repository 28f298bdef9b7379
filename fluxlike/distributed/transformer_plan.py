"""Transformers divided over an axis of a mesh: each rank computes some of the heads and hidden features."""

from __future__ import annotations

import copy
import re
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from fluxlike.layers.attention.multihead import MultiHeadAttention, Projections
from fluxlike.layers.basic import Dense
from fluxlike.placement.mesh.plans import Plan, by_path, replicate, split
from fluxlike.trees.at import at

__all__ = ["separate_projections", "tensor_parallel"]


def tensor_parallel(axis: str = "model", /, rest: Plan | None = None) -> Plan:
    """Transformer blocks divided over an axis of the mesh, all else by another plan.

    (Shoeybi et al. 2019, arXiv 1909.08053.) The layers that make queries, keys, values and hidden
    features are divided by their outputs, those that follow by their inputs, so a block sums over the
    ranks twice, and a rank computes with its share of the heads. Projections have to be apart: see
    `separate_projections`.

    Args:
        axis: the axis of the mesh. Their number of ranks divides the number of heads. (default: "model")
        rest: the plan of all other parameters. (default: ``replicate()``)

    Returns:
        A plan.

    Raises:
        ValueError: from `to_device`: the tree has no such layers, or projections that are not apart.

    Example:
        >>> import fluxlike as fl
        >>> d = fl.distributed
        >>> block = d.separate_projections(fl.TransformerBlock(8, 2))
        >>> block = fl.to_device(block, d.mesh(data=1, model=1), d.tensor_parallel())
        >>> block.self_attn.out_proj.weight.placements
        (Replicate(), Shard(dim=1))
    """
    others = replicate() if rest is None else rest

    def remaining(path: str, x: Tensor, mesh: DeviceMesh) -> Any:
        if re.search(r"(^|\.)in_proj\.(weight|bias)$", path):
            raise ValueError(
                f"tensor_parallel: {path} makes queries, keys and values by one matrix, which can't be "
                "divided by heads; write model = fluxlike.distributed.separate_projections(model) before "
                "to_device"
            )
        return others(path, x, mesh)

    return by_path(
        {
            r"(\.in_proj\.(query|key|value)|\.linear1)\.(weight|bias)$": split(0, axis),
            r"(\.out_proj|\.linear2)\.weight$": split(1, axis),
        },
        remaining,
    )


def separate_projections(model: Any, /) -> Any:
    """A model whose attention layers make queries, keys and values by three layers, not by one.

    Args:
        model: any tree.

    Returns:
        A tree that computes the same, with `in_proj.query`, `in_proj.key` and `in_proj.value`.

    Example:
        >>> import torch, fluxlike as fl
        >>> attention = fl.MultiHeadAttention(8, 2)
        >>> apart = fl.distributed.separate_projections(attention)
        >>> x = torch.randn(5, 3, 8)
        >>> apart.in_proj.query.weight.shape, torch.allclose(apart(x), attention(x), atol=1e-6)
        (torch.Size([8, 8]), True)
    """

    made: dict[int, tuple[Tensor, list[Tensor]]] = {}  # the parts of a tied tensor stay tied

    def parts_of(x: Tensor, sizes: list[int]) -> list[Tensor]:
        if id(x) not in made:
            made[id(x)] = x, [part.clone() for part in x.detach().split(sizes)]
        return made[id(x)][1]

    def separated(dense: Dense, sizes: list[int]) -> Projections:
        weights = parts_of(dense.weight, sizes)
        biases = [None] * 3 if dense.bias is None else parts_of(dense.bias, sizes)
        return Projections(*(_like(dense, w, b) for w, b in zip(weights, biases, strict=True)))

    def apart(node: MultiHeadAttention) -> MultiHeadAttention:
        assert isinstance(node.in_proj, Dense)
        of_keys = node.num_kv_heads * (node.embed_dim // node.num_heads)
        new = copy.copy(node)
        new.in_proj = separated(node.in_proj, [node.embed_dim, of_keys, of_keys])
        return new

    def together(path: str, node: Any) -> bool:
        return isinstance(node, MultiHeadAttention) and isinstance(node.in_proj, Dense)

    try:
        return at(model, together).apply(apart)
    except KeyError:  # there is none
        return model


def _like(dense: Dense, weight: Tensor, bias: Tensor | None) -> Dense:
    part = copy.copy(dense)
    part.weight, part.bias = weight, bias
    return part
