"""Activation functions under their usual names; any callable can be one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "celu", "elu", "flatten", "gelu", "gelu_tanh", "glu", "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "identity", "leaky_relu", "log_softmax", "logsigmoid", "mish", "relu", "relu6", "selu",
    "sigmoid", "silu", "softmax", "softplus", "softshrink", "softsign", "swish", "tanh", "tanhshrink",
]  # fmt: skip

relu = torch.relu
sigmoid = torch.sigmoid
tanh = torch.tanh
elu, selu, celu, leaky_relu, relu6 = F.elu, F.selu, F.celu, F.leaky_relu, F.relu6
gelu, silu, mish, softplus, softsign = F.gelu, F.silu, F.mish, F.softplus, F.softsign
hardsigmoid, hardswish, hardtanh = F.hardsigmoid, F.hardswish, F.hardtanh
hardshrink, softshrink, tanhshrink = F.hardshrink, F.softshrink, F.tanhshrink
glu = F.glu
swish = silu


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


def gelu_tanh(x: Tensor, /) -> Tensor:
    """`gelu` by its approximation with tanh (Hendrycks & Gimpel 2016, arXiv 1606.08415), as in GPT-2.

    Args:
        x: a tensor of any shape.

    Returns:
        ``x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.gelu_tanh(torch.tensor([-1.0, 1.0]))
        tensor([-0.1588,  0.8412])
    """
    return F.gelu(x, approximate="tanh")


def logsigmoid(x: Tensor, /) -> Tensor:
    """The logarithm of the sigmoid, computed stably.

    Args:
        x: a tensor of any shape.

    Returns:
        ``-log(1 + exp(-x))``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.logsigmoid(torch.tensor([0.0, -1000.0]))
        tensor([-6.9315e-01, -1.0000e+03])
    """
    return F.logsigmoid(x)


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
