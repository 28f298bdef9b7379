"""PReLU, an activation with parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Init
from fluxlike.layers.checks import explain_mixture, require_features
from fluxlike.layers.construct import new_weight
from fluxlike.trees.functor import functor

__all__ = ["PReLU"]


def _quarter(shape: Sequence[int]) -> Tensor:
    return torch.full(tuple(shape), 0.25)


@autosized(num_parameters=1)
@functor
class PReLU:
    """A rectifier with a learned slope below zero: ``max(0, x) + weight·min(0, x)``.

    (He et al. 2015, arXiv 1502.01852.) A layer; as the activation of another one it is trained with it.

    Args:
        num_parameters: how many slopes: one for all, or one a channel. (default: 1)
        init: makes the slopes from their shape. (default: 0.25 each)

    Attributes:
        weight: (num_parameters,).

    Input and output: any shape; with several slopes (N, num_parameters, …).

    Raises:
        ValueError: from a call: another number of channels.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.PReLU()(torch.tensor([-4.0, 4.0]))
        tensor([-1.,  4.])
        >>> fl.Dense(4, 8, fl.PReLU(8))
        Dense(
          4, 8,
          weight=float32[8, 4],
          bias=float32[8],
          activation=PReLU(8),  # 8 parameters
        )                       # Total: 3 tensors, 48 parameters, 192 bytes
    """

    def __init__(self, num_parameters: int = 1, *, init: Init = _quarter) -> None:
        self.weight = new_weight("PReLU", init, (num_parameters,))

    def __call__(self, x: Tensor) -> Tensor:
        (n,) = self.weight.shape
        if not isinstance(x, Tensor) or (n > 1 and (x.ndim < 2 or x.shape[1] != n)):
            require_features("PReLU", x, 1, n, f"(N, {n}, …)")
        if functorch.active():  # torch's kernel warns of its own resizing there
            slopes = self.weight.reshape(1, n, *(1,) * (x.ndim - 2)) if n > 1 else self.weight
            return torch.where(x > 0, x, x * slopes)
        try:
            return F.prelu(x, self.weight)
        except RuntimeError as error:
            explain_mixture("PReLU", self.weight, x, error)
            raise

    def extra_repr(self) -> str:
        (n,) = self.weight.shape
        return "" if n == 1 else f"{n}"
