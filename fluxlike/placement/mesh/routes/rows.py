"""Routes of functions of the rows of a batch: pools, convolutions, norms, tables of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from fluxlike._private import collectives
from fluxlike._private.dtensors import local_of
from fluxlike.placement.mesh.rowwise import Rowwise, Whole
from fluxlike.placement.mesh.signatures import named
from fluxlike.placement.mesh.statistics import batch_norm
from fluxlike.placement.mesh.tensors import Stored, gathered, settled

__all__ = ["ROUTES"]


def _pad(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Padding, which leaves the leading axes alone."""

    given = named(func, args, kwargs)
    free = given["input"].ndim - len(given["pad"]) // 2
    return (Rowwise(0, "input", axes=free) if free > 0 else Whole())(func, args, kwargs)


def _embedding_bag(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Bags in rows are apart; those in one long row are not, nor are gradients scaled by how often."""

    given = named(func, args, kwargs)
    apart = given["input"].ndim == 2 and given["max_norm"] is None and not given["scale_grad_by_freq"]
    by_rows = Rowwise(0, 8, "input", "per_sample_weights")
    return (by_rows if apart else Whole())(func, args, kwargs)


def _embedding(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Rows of a table, gathered along the axes of the data; where it is split, the sum of its parts."""
    given = named(func, args, kwargs)
    if given["scale_grad_by_freq"]:  # by how often among all rows
        return Whole()(func, args, kwargs)
    weight = given["weight"]
    y = func(**given | {"weight": gathered(weight) if isinstance(weight, Stored) else weight})
    return settled(y) if isinstance(y, DTensor) else y


def _instance_norm(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Any:
    """Each example by its own moments; running statistics move by the mean over the examples of all ranks."""
    y = Rowwise(0, "input")(func, args, kwargs)
    given = named(func, args, kwargs)
    if given["use_input_stats"] and isinstance(y, DTensor):
        mesh = y.device_mesh
        dims = [i for i, p in enumerate(y.placements) if isinstance(p, Shard)]
        for running in (given["running_mean"], given["running_var"]):
            if isinstance(running, DTensor) and dims:
                total = local_of(running)
                for i in dims:
                    total = collectives.all_reduce(total, mesh, i) / mesh.size(i)
                local_of(running).copy_(total)
    return y


_OF_ROWS = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d_with_indices, torch.max_pool1d_with_indices,
    F.lp_pool1d, F.lp_pool2d, F.lp_pool3d, F.local_response_norm,
    F.interpolate, F.upsample, F.pixel_shuffle, F.pixel_unshuffle, F.group_norm, torch.group_norm,
    F.unfold, F.fold, F.channel_shuffle, F.prelu, Tensor.prelu,
)  # fmt: skip
_UNPOOLED = (F.max_unpool1d, F.max_unpool2d, F.max_unpool3d)
# Where there is no batch, the first axis is that of the channels, which are mixed.
_CONVOLVED = {
    convolution: Rowwise(0, "input", trailing=axes + 1)
    for axes in (1, 2, 3)
    for convolution in (getattr(F, f"conv{axes}d"), getattr(F, f"conv_transpose{axes}d"))
}

ROUTES: dict[Any, Any] = {
    **dict.fromkeys(_OF_ROWS, Rowwise(0, "input")),
    **dict.fromkeys(_UNPOOLED, Rowwise(0, 1, "input", "indices")),
    **_CONVOLVED,
    F.grid_sample: Rowwise(0, 1, "input", "grid"),
    F.pad: _pad,
    F.embedding: _embedding,
    F.embedding_bag: _embedding_bag,
    F.instance_norm: _instance_norm,
    F.batch_norm: batch_norm,
}
