"""Activation functions under their usual names; any callable can be one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.checks import refuse_input

__all__ = [
    "celu", "elu", "flatten", "gelu", "gelu_tanh", "glu", "hardshrink", "hardsigmoid", "hardswish",
    "hardtanh", "identity", "leaky_relu", "log_softmax", "logsigmoid", "mish", "relu", "relu6", "selu",
    "sigmoid", "silu", "softmax", "softplus", "softshrink", "softsign", "swish", "tanh", "tanhshrink",
]  # fmt: skip

# Torch's own where they have no inplace=; the others follow, without it.
relu = torch.relu
sigmoid = torch.sigmoid
tanh = torch.tanh
gelu, softplus, softsign = F.gelu, F.softplus, F.softsign
hardshrink, softshrink, tanhshrink = F.hardshrink, F.softshrink, F.tanhshrink


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


def relu6(x: Tensor, /) -> Tensor:
    """`relu`, kept at 6 at most (Howard et al. 2017, arXiv 1704.04861).

    Args:
        x: a tensor of any shape.

    Returns:
        ``min(max(0, x), 6)``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.relu6(torch.tensor([-1.0, 2.0, 9.0]))
        tensor([0., 2., 6.])
    """
    return F.relu6(x)


def leaky_relu(x: Tensor, /, negative_slope: float = 0.01) -> Tensor:
    """`relu` with a small slope below zero (Maas et al. 2013).

    Args:
        x: a tensor of any shape.
        negative_slope: the slope below zero. (default: 0.01)

    Returns:
        ``x`` above zero, else ``negative_slope·x``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.leaky_relu(torch.tensor([-1.0, 2.0]))
        tensor([-0.0100,  2.0000])
    """
    return F.leaky_relu(x, negative_slope)


def elu(x: Tensor, /, alpha: float = 1.0) -> Tensor:
    """The exponential linear unit (Clevert et al. 2015, arXiv 1511.07289).

    Args:
        x: a tensor of any shape.
        alpha: how far below zero the values go. (default: 1.0)

    Returns:
        ``x`` above zero, else ``alpha·(exp(x) - 1)``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.elu(torch.tensor([-1.0, 2.0]))
        tensor([-0.6321,  2.0000])
    """
    return F.elu(x, alpha)


def celu(x: Tensor, /, alpha: float = 1.0) -> Tensor:
    """`elu` with slope 1 at zero for every alpha (Barron 2017, arXiv 1704.07483).

    Args:
        x: a tensor of any shape.
        alpha: how far below zero the values go. (default: 1.0)

    Returns:
        ``x`` above zero, else ``alpha·(exp(x/alpha) - 1)``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.celu(torch.tensor([-1.0, 2.0]))
        tensor([-0.6321,  2.0000])
    """
    return F.celu(x, alpha)


def selu(x: Tensor, /) -> Tensor:
    """The scaled `elu` that keeps mean and variance (Klambauer et al. 2017, arXiv 1706.02515).

    Args:
        x: a tensor of any shape.

    Returns:
        ``1.0507·elu(x, 1.6733)``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.selu(torch.tensor([-1.0, 2.0]))
        tensor([-1.1113,  2.1014])
    """
    return F.selu(x)


def silu(x: Tensor, /) -> Tensor:
    """The sigmoid linear unit, Flux's swish (Ramachandran et al. 2017, arXiv 1710.05941).

    Args:
        x: a tensor of any shape.

    Returns:
        ``x·sigmoid(x)``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.silu(torch.tensor([-1.0, 2.0]))
        tensor([-0.2689,  1.7616])
    """
    return F.silu(x)


swish = silu


def mish(x: Tensor, /) -> Tensor:
    """A smooth relative of `silu` (Misra 2019, arXiv 1908.08681).

    Args:
        x: a tensor of any shape.

    Returns:
        ``x·tanh(softplus(x))``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.mish(torch.tensor([-1.0, 2.0]))
        tensor([-0.3034,  1.9440])
    """
    return F.mish(x)


def hardsigmoid(x: Tensor, /) -> Tensor:
    """The sigmoid in three straight lines (Howard et al. 2019, arXiv 1905.02244).

    Args:
        x: a tensor of any shape.

    Returns:
        ``x/6 + 1/2``, kept within 0 and 1, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.hardsigmoid(torch.tensor([-4.0, 0.0, 1.5]))
        tensor([0.0000, 0.5000, 0.7500])
    """
    return F.hardsigmoid(x)


def hardswish(x: Tensor, /) -> Tensor:
    """`silu` with `hardsigmoid` for its sigmoid (Howard et al. 2019, arXiv 1905.02244).

    Args:
        x: a tensor of any shape.

    Returns:
        ``x·hardsigmoid(x)``, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.hardswish(torch.tensor([-4.0, 0.0, 3.0]))
        tensor([-0., 0., 3.])
    """
    return F.hardswish(x)


def hardtanh(x: Tensor, /, min_val: float = -1.0, max_val: float = 1.0) -> Tensor:
    """The tanh in three straight lines (Collobert 2004).

    Args:
        x: a tensor of any shape.
        min_val: the lowest value. (default: -1.0)
        max_val: the highest value. (default: 1.0)

    Returns:
        ``x``, kept within both, of the same shape.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.hardtanh(torch.tensor([-4.0, 0.5, 3.0]))
        tensor([-1.0000,  0.5000,  1.0000])
    """
    return F.hardtanh(x, min_val, max_val)


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


def glu(x: Tensor, /, dim: int | None = None) -> Tensor:
    """The gated linear unit (Dauphin et al. 2017, arXiv 1612.08083).

    Args:
        x: values and their gates, in two halves of one axis: of shape (C,) or (N, C), or any with `dim`.
        dim: the axis of the halves: -1 for (N, L, C), 1 for (N, C, H, W). (default: the last of one or two)

    Returns:
        ``a·sigmoid(b)`` of the halves a and b, of half the size on this axis.

    Raises:
        ValueError: more than two axes, and no `dim`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.glu(torch.tensor([[2.0, 4.0, 0.0, 0.0]]))
        tensor([[1., 2.]])
    """
    return F.glu(x, _only_axis("glu", x) if dim is None else dim)


def softmax(x: Tensor, /, dim: int | None = None) -> Tensor:
    """Softmax over the classes.

    Args:
        x: scores of shape (C,) or (N, C), or any with `dim`.
        dim: the axis of the classes: -1 for (N, L, C), 1 for (N, C, H, W). (default: the last of one or
            two)

    Returns:
        Probabilities of the same shape.

    Raises:
        ValueError: more than two axes, and no `dim`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.softmax(torch.zeros(1, 4))
        tensor([[0.2500, 0.2500, 0.2500, 0.2500]])
    """
    return torch.softmax(x, _only_axis("softmax", x) if dim is None else dim)


def log_softmax(x: Tensor, /, dim: int | None = None) -> Tensor:
    """The logarithm of `softmax`, computed stably.

    Args:
        x: scores of shape (C,) or (N, C), or any with `dim`.
        dim: the axis of the classes, as in `softmax`. (default: the last of one or two)

    Returns:
        Log-probabilities of the same shape.

    Raises:
        ValueError: more than two axes, and no `dim`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.log_softmax(torch.zeros(1, 2))
        tensor([[-0.6931, -0.6931]])
    """
    return torch.log_softmax(x, _only_axis("log_softmax", x) if dim is None else dim)


def _only_axis(name: str, x: Tensor) -> int:
    """The axis beside the batch, where there is but one: of more, any may be meant.

    Raises:
        ValueError: it says how to name the axis.
    """
    if not isinstance(x, Tensor) or x.ndim not in (1, 2):
        hint = (
            "; of more axes, say which is C: dim=-1 for (N, L, C), dim=1 for (N, C, H, W), in a layer or a "
            f"Chain functools.partial(fluxlike.{name}, dim=-1)"
        )
        refuse_input(name, x, "(C,) or (N, C)", hint)
    return x.ndim - 1


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
