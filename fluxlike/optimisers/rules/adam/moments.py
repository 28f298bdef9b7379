"""What Adam and its family share: hyperparameters, the two moments of a gradient, and the ratio of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.checks import positive, two_rates
from fluxlike.optimisers.counters import counter
from fluxlike.optimisers.formula import Formula
from fluxlike.optimisers.leaves import Leaves, Scalar
from fluxlike.optimisers.rule import Hyper

__all__ = ["Moments", "TwoMoments", "split_decay"]


class Moments(NamedTuple):
    """The two moments of one parameter's gradient, named as in torch."""

    exp_avg: Any
    exp_avg_sq: Any
    step: Any


@dataclass(frozen=True)
class TwoMoments(Formula):
    """What the family shares: hyperparameters, and the moments."""

    lr: Hyper = 1e-3
    betas: tuple[Hyper, Hyper] = (0.9, 0.999)
    eps: Hyper = 1e-8
    weight_decay: Hyper = 0.0

    shared: ClassVar[tuple[str, ...]] = ("step",)

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            positive(name, getattr(self, name))
        two_rates("betas", self.betas)

    def init(self, param: Tensor, /) -> Any:
        return Moments(torch.zeros_like(param), torch.zeros_like(param), counter(param))

    def moments(self, s: Any, g: Leaves, /) -> tuple[Leaves, Leaves]:
        """``m ← β₁m + (1-β₁)g`` and ``v ← β₂v + (1-β₂)g²``."""
        beta1, beta2 = self.betas
        return s.exp_avg.lerp(g, 1 - beta1), (s.exp_avg_sq * beta2).add_product(g, g, 1 - beta2)

    def corrections(self, t: Scalar, /) -> tuple[Scalar, Scalar]:
        """``1-β₁ᵗ`` and ``1-β₂ᵗ``, by which moments that started at zero are divided."""
        beta1, beta2 = self.betas
        return 1 - beta1**t, 1 - beta2**t

    def ratio(self, m: Leaves, v: Leaves, t: Scalar, scale: Scalar = 1.0, /) -> Leaves:
        """``scale · m^/(√v^ + eps)``."""
        c1, c2 = self.corrections(t)
        return m / (v.sqrt() / c2**0.5 + self.eps) * (scale / c1)


def split_decay(rule: Any) -> tuple[Hyper, Hyper]:
    """The decay that is added to the gradient, and the one that is added to the step."""
    if rule.decoupled_weight_decay:
        return 0.0, rule.lr * rule.weight_decay
    return rule.weight_decay, 0.0
