"""Rows of the table of layers: layers whose weight is a function of what is trained."""

from __future__ import annotations

from typing import Any

import torch
from layer_row import Row, floats
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fluxlike as fl


def magnitude_last(tensors: list[Tensor]) -> list[Tensor]:
    """From torch's bias, magnitude and direction to our direction, bias and magnitude."""
    bias, magnitude, direction = tensors
    return [direction, bias, magnitude]


def weight_first(tensors: list[Tensor]) -> list[Tensor]:
    """From torch's bias, weight and vectors to our weight, bias and vectors."""
    bias, weight, *vectors = tensors
    return [weight, bias, *vectors]


def converged(layer: Any) -> Any:
    """A spectral norm whose vectors are those of its weight, so that its gradient is the whole one."""
    layer = fl.fmap(lambda t: 0.5 + torch.rand(t.shape, dtype=torch.float64), layer)
    matrix = layer.layer.weight.movedim(layer.dim, 0).flatten(1)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return fl.at(layer, (".u", ".v")).set((u[:, 0].contiguous(), v[0].contiguous()))


ROWS = [
    Row(
        "WeightNorm of a Dense",
        lambda: fl.WeightNorm(fl.Dense(3, 4, fl.tanh)),
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh()),
        floats(5, 3),
        "WeightNorm(\n"
        "  layer=Dense(3, 4, tanh),  # 16 parameters\n"
        "  g=float32[4, 1],\n"
        ")                           # Total: 3 tensors, 20 parameters, 80 bytes",
        refused=((5, 4),),
        wanted=r"\.layer: Dense\(3, 4, tanh\) got .* takes the shape \(…, 3\), found {}",
        order=magnitude_last,
    ),
    Row(
        "WeightNorm of a Conv, by inputs",
        lambda: fl.WeightNorm(fl.Conv((3, 3), 2, 4), dim=1),
        lambda: parametrizations.weight_norm(nn.Conv2d(2, 4, 3), dim=1),
        floats(3, 2, 5, 5),
        "WeightNorm(\n"
        "  dim=1,\n"
        "  layer=Conv((3, 3), 2, 4),  # 76 parameters\n"
        "  g=float32[1, 2, 1, 1],\n"
        ")                            # Total: 3 tensors, 78 parameters, 312 bytes",
        refused=((3, 3, 5, 5),),
        wanted=r"\.layer: .*Conv takes the shape \(N, 2, H, W\), found {}",
        order=magnitude_last,
    ),
    Row(
        "WeightNorm of a ConvTranspose",
        lambda: fl.WeightNorm(fl.ConvTranspose((3, 3), 2, 4), dim=1),
        lambda: parametrizations.weight_norm(nn.ConvTranspose2d(2, 4, 3), dim=1),
        floats(3, 2, 3, 3),
        "WeightNorm(\n"
        "  dim=1,\n"
        "  layer=ConvTranspose((3, 3), 2, 4),  # 76 parameters\n"
        "  g=float32[1, 4, 1, 1],\n"
        ")                                     # Total: 3 tensors, 80 parameters, 320 bytes",
        refused=((3, 3, 5, 5),),
        wanted=r"\.layer: .*ConvTranspose takes the shape \(N, 2, H, W\), found {}",
        order=magnitude_last,
    ),
    Row(
        "SpectralNorm of a Dense",
        lambda: fl.SpectralNorm(fl.Dense(3, 4, fl.tanh)),
        lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(3, 4)), nn.Tanh()),
        floats(5, 3),
        "SpectralNorm(\n"
        "  layer=Dense(3, 4, tanh),  # 16 parameters\n"
        "  u=float32[4],\n"
        "  v=float32[3],\n"
        ")                           # Total: 4 tensors, 16 parameters, 7 non-trainable, 92 bytes",
        refused=((5, 4),),
        wanted=r"\.layer: Dense\(3, 4, tanh\) got .* takes the shape \(…, 3\), found {}",
        order=weight_first,
        tensors=converged,
        detached=True,
    ),
    Row(
        "SpectralNorm of a Conv, with two iterations",
        lambda: fl.SpectralNorm(fl.Conv((3, 3), 2, 4), n_power_iterations=2),
        lambda: parametrizations.spectral_norm(nn.Conv2d(2, 4, 3), n_power_iterations=2),
        floats(3, 2, 5, 5),
        "SpectralNorm(\n"
        "  n_power_iterations=2,\n"
        "  layer=Conv((3, 3), 2, 4),  # 76 parameters\n"
        "  u=float32[4],\n"
        "  v=float32[18],\n"
        ")                            # Total: 4 tensors, 76 parameters, 22 non-trainable, 392 bytes",
        refused=((3, 3, 5, 5),),
        wanted=r"\.layer: .*Conv takes the shape \(N, 2, H, W\), found {}",
        order=weight_first,
        tensors=converged,
        detached=True,
    ),
    Row(
        "SpectralNorm of a ConvTranspose",
        lambda: fl.SpectralNorm(fl.ConvTranspose((3,), 2, 4)),
        lambda: parametrizations.spectral_norm(nn.ConvTranspose1d(2, 4, 3)),
        floats(3, 2, 3),
        "SpectralNorm(\n"
        "  layer=ConvTranspose((3,), 2, 4),  # 28 parameters\n"
        "  u=float32[4],\n"
        "  v=float32[6],\n"
        ")                                   # Total: 4 tensors, 28 parameters, 10 non-trainable, 152 bytes",
        refused=((3, 3, 5),),
        wanted=r"\.layer: .*ConvTranspose takes the shape \(N, 2, L\), found {}",
        order=weight_first,
        tensors=converged,
        detached=True,
    ),
]
