"""The residual block: a branch and a way around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluxlike.layers.activations import identity
from fluxlike.layers.checks import require_callable
from fluxlike.layers.dropout import DropPath
from fluxlike.layers.errors import fail, within
from fluxlike.layers.printing import activation_text
from fluxlike.trees.adopt import adopted
from fluxlike.trees.functor import functor

__all__ = ["Residual"]


@functor(children=("branch", "shortcut", "activation", "drop_path"))
class Residual:
    """``activation(shortcut(x) + branch(x))`` (He et al. 2015, arXiv 1512.03385).

    Args:
        branch: layers.
        shortcut: what goes around them. (default: the identity)
        activation: any callable, of the sum. (default: the identity)
        drop_path: the probability with which an example goes around the branch in train mode (stochastic
            depth, Huang et al. 2016, arXiv 1603.09382). (default: 0)

    Attributes:
        branch: the layers.
        shortcut: what goes around them.
        activation: the activation.
        drop_path: a DropPath, left out where its p is 0.

    Input: whatever `branch` takes. Output: of the shape that branch and shortcut both give.

    Raises:
        TypeError: a branch, shortcut or activation that can't be called.
        LayerError: from a call: one of them failed, or branch and shortcut give other shapes.

    Example:
        >>> import torch, fluxlike as fl
        >>> block = fl.models.Residual(fl.Chain(fl.Dense(4, 8, fl.relu), fl.Dense(8, 4)), activation=fl.relu)
        >>> block(torch.ones(2, 4)).shape
        torch.Size([2, 4])
    """

    def __init__(
        self,
        branch: Callable[[Any], Tensor],
        shortcut: Callable[[Any], Tensor] = identity,
        activation: Callable[[Tensor], Tensor] = identity,
        *,
        drop_path: float = 0.0,
    ) -> None:
        for part, f in (("branch", branch), ("shortcut", shortcut), ("activation", activation)):
            require_callable("Residual", part, f)
        self.branch, self.shortcut = adopted(branch), adopted(shortcut)
        self.activation, self.drop_path = adopted(activation), DropPath(drop_path)

    def __call__(self, x: Any) -> Tensor:
        y = within(".branch", self.branch, x)
        y = self.drop_path(y) if self.drop_path.p else y
        around = within(".shortcut", self.shortcut, x)
        if y.shape != around.shape:
            error = ValueError(
                f"branch gives {tuple(y.shape)} and shortcut {tuple(around.shape)}, which can't be added; "
                "write a shortcut that changes the shape too, such as a Conv of one tap with the branch's "
                "stride"
            )
            fail(".branch", self.branch, (x,), error)
        return self.activation(around + y)

    def extra_repr(self) -> str:
        return activation_text(self.activation).removeprefix(", ")
