"""Rows of the table of layers: what train mode leaves out at random."""

from __future__ import annotations

import torch
from layer_row import Row, floats
from torch import Tensor, nn

import fluxlike as fl


class Path(nn.Module):
    """Stochastic depth, an example at a time."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        kept = torch.empty((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x * kept.bernoulli_(0.7) / 0.7


ROWS = [
    Row(
        "Dropout",
        lambda: fl.Dropout(0.3),
        lambda: nn.Dropout(0.3),
        floats(5, 3),
        "Dropout(0.3)",
        draws=True,
        not_a_tensor=False,
    ),
    Row(
        "Dropout of channels",
        lambda: fl.Dropout(0.3, dims=(0, 1)),
        lambda: nn.Dropout2d(0.3),
        floats(5, 4, 2, 3),
        "Dropout(0.3, dims=(0, 1))",
        draws=True,
        not_a_tensor=False,
    ),
    Row(
        "AlphaDropout",
        lambda: fl.AlphaDropout(0.3),
        lambda: nn.AlphaDropout(0.3),
        floats(5, 3),
        "AlphaDropout(0.3)",
        draws=True,
        not_a_tensor=False,
    ),
    Row(
        "DropPath",
        lambda: fl.DropPath(0.3),
        Path,
        floats(9, 2, 3),
        "DropPath(0.3)",
        draws=True,
        not_a_tensor=False,
    ),
]
