"""Rows of the table of layers: layers made of layers."""

from __future__ import annotations

import torch
from layer_row import Residual, Row, floats
from torch import nn

import fluxlike as fl

ROWS = [
    Row(
        "SkipConnection",
        lambda: fl.SkipConnection(fl.Dense(3, 3), torch.add),
        lambda: Residual(nn.Linear(3, 3)),
        floats(5, 3),
        "SkipConnection(\n"
        "  layer=Dense(3, 3),  # 12 parameters\n"
        "  connection=add,\n"
        ")                     # Total: 2 tensors, 12 parameters, 48 bytes",
        refused=((5, 2),),
        wanted=r"\.layer: .*Dense takes the shape \(…, 3\), found {}",
    ),
    Row(
        "Chain",
        lambda: fl.Chain(fl.Dense(3, 4), fl.BatchNorm(4), torch.tanh, fl.Dropout(0.4), fl.Dense(4, 2)),
        lambda: nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.4), nn.Linear(4, 2)
        ),
        floats(5, 3),
        "Chain(\n"
        "  Dense(3, 4),   # 16 parameters\n"
        "  BatchNorm(4),  # 8 parameters, 8 non-trainable\n"
        "  tanh,\n"
        "  Dropout(0.4),\n"
        "  Dense(4, 2),   # 10 parameters\n"
        ")                # Total: 8 tensors, 34 parameters, 8 non-trainable, 168 bytes",
        refused=((5, 2),),
        wanted=r"\.layers\[0\]: .*Dense takes the shape \(…, 3\), found {}",
        draws=True,
        lone_row_trains=False,
    ),
]
