"""Routes of torch's attention: of examples, and of heads where these are divided over a mesh."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch.nn.functional as F

from fluxlike.placement.mesh.routes.random import Drawn, apart
from fluxlike.placement.mesh.rowwise import Divided, Rowwise, Whole, tensors_over
from fluxlike.placement.mesh.signatures import named

__all__ = ["ROUTES"]

_BATCHED: tuple[tuple[Any, ...], dict[str, Any]] = (
    (0, 1, 2, "query", "key", "value"),
    {"trailing": 2, "broadcast": (3, "attn_mask")},
)


def _attention(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """`scaled_dot_product_attention` of (…, L, D); each rank drops weights of its own."""
    rows, axes = _BATCHED
    query, key, value, mask, p, *_ = (*args, *(None,) * 5)
    given = {"query": query, "key": key, "value": value, "attn_mask": mask, "dropout_p": p} | kwargs
    n = given["query"].ndim
    if not given["key"].ndim == given["value"].ndim == n or getattr(given["attn_mask"], "ndim", 0) > n:
        return Whole()(func, args, kwargs)  # the leading axes of the result are others than those of a query
    return (Drawn(*rows, **axes) if given["dropout_p"] else Rowwise(*rows, **axes))(func, args, kwargs)


def _module(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """What ``nn.MultiheadAttention`` calls, of queries (L, N, E)."""
    given = named(func, args, kwargs)
    query = given["query"]
    batched = query.ndim == 3
    axes = {"query": 1, "key": 1, "value": 1, "key_padding_mask": 0, "static_k": 0, "static_v": 0}
    mask = given["attn_mask"]
    if mask is not None and mask.ndim == 3:  # (N·heads, L, S), an example after the other
        axes["attn_mask"] = 0
    found = [(x, axis) for name, axis in axes.items() for x in tensors_over(given[name])] if batched else []
    if not found:
        return NotImplemented
    rows = Divided([x for x, _ in found], [axis for _, axis in found])
    drawn = bool(given["dropout_p"]) and given["training"]
    with apart(query.device_mesh, rows.at(1), query.device) if drawn else nullcontext():
        y, weights = func(**{name: rows.enter(x) for name, x in given.items()})
    return rows.leave(y, 1), rows.leave(weights, 0)


ROUTES: dict[Any, Any] = {
    F.scaled_dot_product_attention: _attention,
    F.multi_head_attention_forward: _module,
}
