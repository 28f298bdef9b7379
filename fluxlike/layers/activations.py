"""Activation functions under their usual names; any callable can be one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "elu", "flatten", "gelu", "identity", "leaky_relu", "log_softmax", "relu", "selu", "sigmoid",
    "silu", "softmax", "softplus", "tanh",
]  # fmt: skip

relu = torch.relu
sigmoid = torch.sigmoid
tanh = torch.tanh
elu, gelu, leaky_relu, selu, silu, softplus = F.elu, F.gelu, F.leaky_relu, F.selu, F.silu, F.softplus


def identity(x: Tensor, /) -> Tensor:
    """The input itself.

    Args:
        x: anything.

    Example:
        >>> import fluxlike as fl
        >>> fl.identity(3)
        3
    """
    return x


def softmax(x: Tensor, /, dim: int = 1) -> Tensor:
    """Softmax over the classes.

    Args:
        x: scores of shape (N, C, …).
        dim: the axis of the classes. (default: 1)

    Returns:
        Probabilities of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.softmax(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return torch.softmax(x, dim)


def log_softmax(x: Tensor, /, dim: int = 1) -> Tensor:
    """The logarithm of `softmax`, computed stably.

    Args:
        x: scores of shape (N, C, …).
        dim: the axis of the classes. (default: 1)

    Returns:
        Log-probabilities of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.log_softmax(torch.zeros(1, 2))
        tensor([[-0.6931, -0.6931]])
    """
    return torch.log_softmax(x, dim)


def flatten(x: Tensor, /) -> Tensor:
    """All axes after the batch in one: (N, …) → (N, features).

    Args:
        x: a tensor of at least one axis.

    Returns:
        A view where the layout allows, else a copy.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.flatten(torch.zeros(8, 3, 4, 4)).shape
        torch.Size([8, 48])
    """
    return x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
