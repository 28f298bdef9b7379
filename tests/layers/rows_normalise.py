"""Rows of the table of layers: normalisation."""

from __future__ import annotations

from layer_row import Row, floats
from torch import nn

import fluxlike as fl

ROWS = [
    Row(
        "BatchNorm of features",
        lambda: fl.BatchNorm(3, fl.tanh, eps=1e-3, momentum=0.3),
        lambda: nn.Sequential(nn.BatchNorm1d(3, 1e-3, 0.3), nn.Tanh()),
        floats(5, 3),
        "BatchNorm(3, tanh, eps=0.001, momentum=0.3)  # 6 parameters, 6 non-trainable",
        refused=((5, 4), (3,), (5, 2, 3)),
        wanted=r"BatchNorm takes the shape \(N, 3, …\), found {}",
        lone_row_trains=False,
    ),
    Row(
        "BatchNorm of images, without affine",
        lambda: fl.BatchNorm(2, affine=False),
        lambda: nn.BatchNorm2d(2, affine=False),
        floats(3, 2, 4, 4),
        "BatchNorm(2, affine=False)  # 4 non-trainable",
        refused=((3, 4, 4, 2),),
        wanted=r"BatchNorm takes the shape \(N, 2, …\), found {}",
    ),
    Row(
        "LayerNorm",
        lambda: fl.LayerNorm(4, fl.tanh, eps=1e-3),
        lambda: nn.Sequential(nn.LayerNorm(4, 1e-3), nn.Tanh()),
        floats(3, 2, 4),
        "LayerNorm(4, tanh, eps=0.001)  # 8 parameters",
        refused=((3, 4, 2), ()),
        wanted=r"LayerNorm takes the shape \(…, 4\), found {}",
    ),
    Row(
        "LayerNorm of two axes, without affine",
        lambda: fl.LayerNorm((2, 4), affine=False),
        lambda: nn.LayerNorm((2, 4), elementwise_affine=False),
        floats(3, 2, 4),
        "LayerNorm((2, 4), affine=False)",
        refused=((3, 4, 2), (4,)),
        wanted=r"LayerNorm takes the shape \(…, 2, 4\), found {}",
    ),
    Row(
        "BatchNorm with the mean over all batches",
        lambda: fl.BatchNorm(3, momentum=None),
        lambda: nn.BatchNorm1d(3, momentum=None),
        floats(5, 3, 4),
        "BatchNorm(3, momentum=None)  # 6 parameters, 7 non-trainable",
        refused=((5, 4, 3),),
        wanted=r"BatchNorm takes the shape \(N, 3, …\), found {}",
    ),
    Row(
        "RMSNorm",
        lambda: fl.RMSNorm(4, fl.tanh, eps=1e-3),
        lambda: nn.Sequential(nn.RMSNorm(4, 1e-3), nn.Tanh()),
        floats(3, 2, 4),
        "RMSNorm(4, tanh, eps=0.001)  # 4 parameters",
        refused=((3, 4, 2), ()),
        wanted=r"RMSNorm takes the shape \(…, 4\), found {}",
    ),
    Row(
        "RMSNorm of two axes, without affine",
        lambda: fl.RMSNorm((2, 4), affine=False),
        lambda: nn.RMSNorm((2, 4), elementwise_affine=False),
        floats(3, 2, 4),
        "RMSNorm((2, 4), affine=False)",
        refused=((3, 4, 2), (4,)),
        wanted=r"RMSNorm takes the shape \(…, 2, 4\), found {}",
    ),
    Row(
        "GroupNorm of images",
        lambda: fl.GroupNorm(6, 3, fl.tanh, eps=1e-3),
        lambda: nn.Sequential(nn.GroupNorm(3, 6, 1e-3), nn.Tanh()),
        floats(3, 6, 2, 4),
        "GroupNorm(6, 3, tanh, eps=0.001)  # 12 parameters",
        refused=((3, 3, 6, 4), (6,), ()),
        wanted=r"GroupNorm takes the shape \(N, 6, …\), found {}",
    ),
    Row(
        "GroupNorm of features, without affine",
        lambda: fl.GroupNorm(4, 1, affine=False),
        lambda: nn.GroupNorm(1, 4, affine=False),
        floats(3, 4),
        "GroupNorm(4, 1, affine=False)",
        refused=((4, 3),),
        wanted=r"GroupNorm takes the shape \(N, 4, …\), found {}",
    ),
    Row(
        "InstanceNorm",
        lambda: fl.InstanceNorm(2, fl.tanh, eps=1e-3),
        lambda: nn.Sequential(nn.InstanceNorm1d(2, 1e-3), nn.Tanh()),
        floats(3, 2, 4),
        "InstanceNorm(2, tanh, eps=0.001)",
        refused=((3, 4, 2), (3, 2), (2, 4)),
        wanted=r"InstanceNorm takes the shape \(N, 2, …\) with at least one spatial axis, found {}",
    ),
    Row(
        "InstanceNorm of images, with affine and running statistics",
        lambda: fl.InstanceNorm(2, momentum=0.3, affine=True, track_stats=True),
        lambda: nn.InstanceNorm2d(2, momentum=0.3, affine=True, track_running_stats=True),
        floats(3, 2, 4, 5),
        "InstanceNorm(2, momentum=0.3, affine=True, track_stats=True)  # 4 parameters, 4 non-trainable",
        refused=((3, 4, 4, 2),),
        wanted=r"InstanceNorm takes the shape \(N, 2, …\) with at least one spatial axis, found {}",
    ),
]
