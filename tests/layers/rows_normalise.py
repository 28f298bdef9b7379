"""Rows of the table of layers: normalisation and dropout."""

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
        "Dropout",
        lambda: fl.Dropout(0.3),
        lambda: nn.Dropout(0.3),
        floats(5, 3),
        "Dropout(0.3)",
        draws=True,
        not_a_tensor=False,
    ),
]
