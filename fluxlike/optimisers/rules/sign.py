"""Rules that step by the sign of a gradient: Rprop and Lion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.checks import positive, two_rates
from fluxlike.optimisers.formula import Formula
from fluxlike.optimisers.leaves import Leaves, decayed, where
from fluxlike.optimisers.rule import Hyper
from fluxlike.trees.functor import functor

__all__ = ["Lion", "Rprop"]


class RpropState(NamedTuple):
    """The gradient before, and each number's own step, named as in torch."""

    prev: Any
    step_size: Any


@functor
@dataclass(frozen=True)
class Rprop(Formula):
    """Resilient propagation (Riedmiller & Braun 1993), for gradients over all data.

    Each number has its own step size: it grows where the gradient keeps its sign, and shrinks where
    it turns, for which the number rests; ``d = size · sign(g)``.

    Args:
        lr: the first size of every step; it is read by `setup` alone. (default: 1e-2)
        etas: the factors by which a size shrinks and grows. (default: (0.5, 1.2))
        step_sizes: the smallest and the largest size. (default: (1e-6, 50))

    Raises:
        ValueError: a negative `lr`, or etas that aren't below and above 1.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.Rprop(0.1), x), x, torch.tensor([5.0]))[0]
        tensor([0.9000])
    """

    lr: Hyper = 1e-2
    etas: tuple[Hyper, Hyper] = (0.5, 1.2)
    step_sizes: tuple[Hyper, Hyper] = (1e-6, 50.0)

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        for name in ("etas", "step_sizes"):
            pair = getattr(self, name)
            if not isinstance(pair, tuple) or len(pair) != 2:
                raise ValueError(f"{name}={pair!r}: write a pair of numbers")
            for k in (0, 1):
                positive(f"{name}[{k}]", pair[k])
        shrink, grow = self.etas
        if not any(isinstance(e, Tensor) for e in self.etas) and not 0 < shrink < 1 < grow:
            raise ValueError(f"etas={self.etas!r}: write a factor below 1 and one above 1")

    def init(self, param: Tensor, /) -> RpropState:
        return RpropState(torch.zeros_like(param), torch.zeros_like(param) + self.lr)

    def formula(self, s: RpropState, x: Leaves, g: Leaves, /) -> tuple[RpropState, Leaves]:
        shrink, grow = self.etas
        agreement = g * s.prev
        turned, kept = -agreement > 0, agreement > 0
        size = where(kept, s.step_size * grow, where(turned, s.step_size * shrink, s.step_size))
        size = size.maximum(self.step_sizes[0]).minimum(self.step_sizes[1])
        g = where(turned, 0.0, g)
        return RpropState(g, size), g.sign() * size


@functor
@dataclass(frozen=True)
class Lion(Formula):
    """Lion (Chen et al. 2023, arXiv 2302.06675).

    ``d = lr·(sign(β₁m + (1-β₁)g) + weight_decay·x)``, then ``m ← β₂m + (1-β₂)g``.

    Args:
        lr: the learning rate, 3 to 10 times smaller than AdamW's. (default: 1e-4)
        betas: the weights of m in the step and in its own mean. (default: (0.9, 0.99))
        weight_decay: the decay. (default: 0)

    Raises:
        ValueError: a negative `lr` or `weight_decay`, or betas outside [0, 1).
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(2)
        >>> fl.update(fl.setup(fl.Lion(0.1), x), x, torch.tensor([5.0, -0.1]))[0]
        tensor([0.9000, 1.1000])
    """

    lr: Hyper = 1e-4
    betas: tuple[Hyper, Hyper] = (0.9, 0.99)
    weight_decay: Hyper = 0.0

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        positive("weight_decay", self.weight_decay)
        two_rates("betas", self.betas)

    def init(self, param: Tensor, /) -> Tensor:
        return torch.zeros_like(param)

    def formula(self, m: Leaves, x: Leaves, g: Leaves, /) -> tuple[Leaves, Leaves]:
        beta1, beta2 = self.betas
        d = decayed(m.lerp(g, 1 - beta1).sign(), x, self.weight_decay)
        return m.lerp(g, 1 - beta2), d * self.lr
