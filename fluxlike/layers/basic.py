"""Dense and Embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.init import glorot_uniform
from fluxlike.layers.activations import identity
from fluxlike.layers.errors import explain_mixture, require_activation, require_features
from fluxlike.random import normal
from fluxlike.trees.functor import functor
from fluxlike.trees.show import value_text

__all__ = ["Dense", "Embedding", "activation_text"]

Activation = Callable[[Tensor], Tensor]
Init = Callable[[Sequence[int]], Tensor]


_INDICES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def activation_text(activation: Activation | None) -> str:
    """The activation as one more argument in print, nothing for the identity."""
    return "" if activation is identity or activation is None else f", {value_text(activation)}"


@functor
class Dense:
    """A fully connected layer: ``activation(x·weightᵀ + bias)``.

    Args:
        in_features: length of the last axis of the input.
        out_features: length of the last axis of the output.
        activation: any callable. (default: the identity)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: `init.glorot_uniform`)

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        activation: the activation.

    Input and output are of shape (…, in_features) and (…, out_features).

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Dense(784, 128, fl.relu)
        Dense(784, 128, relu)  # 100_480 parameters
        >>> fl.Dense(4, 2)(torch.ones(8, 4)).shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Activation = identity,
        *,
        bias: bool = True,
        init: Init = glorot_uniform,
    ) -> None:
        require_activation("Dense", activation)
        self.weight = init((out_features, in_features))
        self.bias = torch.zeros(out_features) if bias else None
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        n = self.weight.shape[1]
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[-1] != n:
            require_features("Dense", x, -1, n, f"(…, {n})")
        try:
            y = F.linear(x, self.weight, self.bias)
        except RuntimeError as error:
            explain_mixture("Dense", self.weight, x, error)
            raise
        return self.activation(y)

    def extra_repr(self) -> str:
        out, in_ = self.weight.shape
        return f"{in_}, {out}{activation_text(self.activation)}{', bias=False' if self.bias is None else ''}"


@functor
class Embedding:
    """A table of vectors, looked up by index.

    Args:
        num_embeddings: how many vectors there are.
        embedding_dim: their length.
        init: makes the table from its shape. (default: standard normal, as in torch)

    Attributes:
        weight: (num_embeddings, embedding_dim).

    Input: integers of any shape. Output: the vectors, one axis more.

    Raises:
        IndexError: from a call on the CPU: an index outside the table.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Embedding(10, 3)(torch.tensor([[1, 2], [3, 9]])).shape
        torch.Size([2, 2, 3])
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, init: Init = normal) -> None:
        self.weight = init((num_embeddings, embedding_dim))

    def __call__(self, indices: Tensor) -> Tensor:
        if not isinstance(indices, Tensor) or indices.dtype not in _INDICES:
            found = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
            raise TypeError(f"Embedding takes a tensor of integers, found {found}; write x.long()")
        try:
            wide = indices if indices.dtype in (torch.int32, torch.int64) else indices.long()
            return F.embedding(wide, self.weight)
        except IndexError:
            raise IndexError(
                f"Embedding has {self.weight.shape[0]} vectors, found indices from "
                f"{int(indices.min())} to {int(indices.max())}"
            ) from None

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"{rows}, {columns}"
