"""Which functions don't go through DTensor's rules, and how they go instead.

DTensor knows most of torch's functions of entries, sums and products. Here are those that it does not know or
moves the data for, and those that it computes wrongly; each `routes_*` file holds those of a kind.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.placement.mesh import (
    routes_attention,
    routes_axes,
    routes_in_place,
    routes_losses,
    routes_random,
    routes_recurrent,
    routes_rows,
    routes_sums,
    routes_vectors,
    routes_whole,
)
from fluxlike.placement.mesh.rowwise import Rowwise
from fluxlike.placement.mesh.statistics import batch_norm
from fluxlike.placement.mesh.tensors import ROUTES

__all__ = ["ROUTES"]

_ROWS = (
    F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d,
    F.max_pool1d_with_indices, F.max_pool2d_with_indices, F.max_pool3d_with_indices,
    F.max_unpool1d, F.max_unpool2d, F.max_unpool3d,
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d,
    F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d,
    F.adaptive_max_pool1d_with_indices, F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d_with_indices, torch.max_pool1d_with_indices,
    F.lp_pool1d, F.lp_pool2d, F.lp_pool3d, F.local_response_norm,
    F.interpolate, F.upsample, F.pixel_shuffle, F.pixel_unshuffle, F.group_norm, torch.group_norm,
    F.unfold, F.fold, F.channel_shuffle, F.prelu, Tensor.prelu,
)  # fmt: skip

ROUTES.update(dict.fromkeys(_ROWS, Rowwise(0, "input")))
for _axes in (1, 2, 3):  # where there is no batch, the first axis is that of the channels, which are mixed
    for _name in (f"conv{_axes}d", f"conv_transpose{_axes}d"):
        ROUTES[getattr(F, _name)] = Rowwise(0, "input", trailing=_axes + 1)
ROUTES[F.grid_sample] = Rowwise(0, 1, "input", "grid")
ROUTES[F.batch_norm] = batch_norm
for _kind in (
    routes_rows, routes_axes, routes_attention, routes_recurrent, routes_losses, routes_whole, routes_random,
    routes_in_place, routes_sums, routes_vectors,
):  # fmt: skip
    ROUTES.update(_kind.ROUTES)
