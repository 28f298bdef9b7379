"""Descent, and descent with momentum: steps along the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxlike._private import fused
from fluxlike.optimisers.checks import positive, within
from fluxlike.optimisers.formula import Formula, Kernel
from fluxlike.optimisers.leaves import Leaves
from fluxlike.optimisers.rule import Hyper
from fluxlike.trees.functor import functor

__all__ = ["Descent", "Momentum", "Nesterov"]


@functor
@dataclass(frozen=True)
class Descent(Formula):
    """Gradient descent: ``d = lr·g``.

    Args:
        lr: the learning rate. (default: 1e-3)

    Raises:
        ValueError: a negative `lr`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.tensor([1.0, 2.0])
        >>> state = fl.setup(fl.Descent(0.1), x)
        >>> fl.update(state, x, torch.tensor([25.0, 33.0]))[0]
        tensor([-1.5000, -1.3000])
    """

    lr: Hyper = 1e-3

    def __post_init__(self) -> None:
        positive("lr", self.lr)

    def formula(self, state: None, x: Leaves, g: Leaves, /) -> tuple[None, Leaves]:
        return None, g * self.lr

    def kernel(self) -> Kernel:
        return lambda state, x, g, skip: fused.sgd(
            x, g, [], skip, lr=float(self.lr), momentum=0.0, nesterov=False
        )


@functor
@dataclass(frozen=True)
class Momentum(Formula):
    """Descent with momentum (Polyak 1964): ``v ← momentum·v + g``, ``d = lr·v``.

    Args:
        lr: the learning rate. (default: 1e-3)
        momentum: how much of the velocity is kept. (default: 0.9)

    Raises:
        ValueError: a negative `lr`, or a `momentum` outside [0, 1).
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> rule = fl.Momentum(0.01)
        >>> v, step = rule.apply(rule.init(torch.ones(1)), torch.ones(1), torch.tensor([0.5]))
        >>> step
        tensor([0.0050])
    """

    lr: Hyper = 1e-3
    momentum: Hyper = 0.9

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        within("momentum", self.momentum)

    def init(self, param: Tensor, /) -> Tensor:
        return torch.zeros_like(param)

    def formula(self, v: Leaves, x: Leaves, g: Leaves, /) -> tuple[Leaves, Leaves]:
        v = v * self.momentum + g
        return v, v * self.lr

    def kernel(self) -> Kernel | None:
        return self._sgd(nesterov=False)

    def _sgd(self, nesterov: bool) -> Kernel | None:
        lr, momentum = float(self.lr), float(self.momentum)
        if momentum == 0:  # for which torch's kernel has no velocity
            return None
        return lambda v, x, g, skip: fused.sgd(x, g, v, skip, lr=lr, momentum=momentum, nesterov=nesterov)


@functor
@dataclass(frozen=True)
class Nesterov(Momentum):
    """Momentum that looks ahead (Nesterov 1983; Sutskever et al. 2013).

    ``v ← momentum·v + g``, ``d = lr·(g + momentum·v)``.

    Args:
        lr: the learning rate. (default: 1e-3)
        momentum: how much of the velocity is kept. (default: 0.9)

    Raises:
        ValueError: a negative `lr`, or a `momentum` outside [0, 1).
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> rule = fl.Nesterov(0.001)
        >>> rule.apply(rule.init(torch.ones(1)), torch.ones(1), torch.tensor([0.5]))[1]
        tensor([0.0010])
    """

    def formula(self, v: Leaves, x: Leaves, g: Leaves, /) -> tuple[Leaves, Leaves]:
        v = v * self.momentum + g
        return v, (g + v * self.momentum) * self.lr

    def kernel(self) -> Kernel | None:
        return self._sgd(nesterov=True)
