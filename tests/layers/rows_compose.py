"""Rows of the table of layers: layers made of layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from layer_row import Residual, Row, floats, together
from torch import Tensor, nn

import fluxlike as fl


class Beside(nn.Module):
    """Modules that `run` calls."""

    def __init__(self, run: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.parts, self.run = nn.ModuleList(parts), run

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self.parts, *inputs)


def join(*outputs: Tensor) -> Tensor:
    return torch.cat(outputs, 1)


def fused(parts: Any, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
    first = parts[0](x)
    second = parts[1](y * first)
    return first, second, parts[2](z * second)


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
    Row(
        "Parallel, one input for all",
        lambda: fl.Parallel(join, fl.Dense(3, 4, fl.tanh), fl.Dropout(0.4), fl.BatchNorm(3)),
        lambda: Beside(
            lambda parts, x: join(*(part(x) for part in parts)),
            nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
            nn.Dropout(0.4),
            nn.BatchNorm1d(3),
        ),
        floats(5, 3),
        "Parallel(\n"
        "  join,\n"
        "  Dense(3, 4, tanh),  # 16 parameters\n"
        "  Dropout(0.4),\n"
        "  BatchNorm(3),       # 6 parameters, 6 non-trainable\n"
        ")                     # Total: 6 tensors, 22 parameters, 6 non-trainable, 112 bytes",
        refused=((5, 2),),
        wanted=r"\.layers\[0\]: .*Dense takes the shape \(…, 3\), found {}",
        draws=True,
        lone_row_trains=False,
    ),
    Row(
        "Parallel, an input each, by name",
        lambda: fl.Parallel(torch.mul, a=fl.Dense(3, 4), b=fl.Dense(2, 4, fl.tanh)),
        lambda: Beside(
            lambda parts, x, y: parts[0](x) * parts[1](y).tanh(), nn.Linear(3, 4), nn.Linear(2, 4)
        ),
        together(floats(5, 3), floats(5, 2)),
        "Parallel(\n"
        "  mul,\n"
        "  a=Dense(3, 4),        # 16 parameters\n"
        "  b=Dense(2, 4, tanh),  # 12 parameters\n"
        ")                       # Total: 4 tensors, 28 parameters, 112 bytes",
    ),
    Row(
        "Maxout",
        lambda: fl.Maxout(lambda: fl.Dense(3, 4), 3),
        lambda: Beside(
            lambda parts, x: torch.stack([part(x) for part in parts]).amax(0),
            *(nn.Linear(3, 4) for _ in range(3)),
        ),
        floats(5, 3),
        "Maxout(\n"
        "  Dense(3, 4),  # 16 parameters\n"
        "  Dense(3, 4),  # 16 parameters\n"
        "  Dense(3, 4),  # 16 parameters\n"
        ")               # Total: 6 tensors, 48 parameters, 192 bytes",
        refused=((5, 2),),
        wanted=r"\.layers\[0\]: .*Dense takes the shape \(…, 3\), found {}",
    ),
    Row(
        "PairwiseFusion",
        lambda: fl.PairwiseFusion(torch.mul, fl.Dense(3, 2), fl.Dense(2, 4), fl.Dense(4, 3)),
        lambda: Beside(fused, nn.Linear(3, 2), nn.Linear(2, 4), nn.Linear(4, 3)),
        together(floats(5, 3), floats(5, 2), floats(5, 4)),
        "PairwiseFusion(\n"
        "  mul,\n"
        "  Dense(3, 2),  # 8 parameters\n"
        "  Dense(2, 4),  # 12 parameters\n"
        "  Dense(4, 3),  # 15 parameters\n"
        ")               # Total: 6 tensors, 35 parameters, 140 bytes",
    ),
]
