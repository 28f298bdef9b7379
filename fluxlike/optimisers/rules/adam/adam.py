"""Adam, AdamW and AMSGrad, for which torch has fused kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike._private import fused
from fluxlike.optimisers.counters import counter
from fluxlike.optimisers.formula import Kernel
from fluxlike.optimisers.leaves import Leaves, decayed
from fluxlike.optimisers.rule import Hyper
from fluxlike.optimisers.rules.adam.moments import Moments, TwoMoments, split_decay
from fluxlike.trees.functor import functor

__all__ = ["AMSGrad", "Adam", "AdamW"]


@functor
@dataclass(frozen=True)
class Adam(TwoMoments):
    """Adam (Kingma & Ba 2015, arXiv 1412.6980, algorithm 1).

    ``m ← β₁m + (1-β₁)g``, ``v ← β₂v + (1-β₂)g²``,
    ``d = lr · m/(1-β₁ᵗ) / (√(v/(1-β₂ᵗ)) + eps)``.

    Args:
        lr: the learning rate. (default: 1e-3)
        betas: the decay rates β₁, β₂ of the two moments. (default: (0.9, 0.999))
        eps: added to the denominator. (default: 1e-8)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)

    Raises:
        ValueError: a negative `lr`, `eps` or `weight_decay`, or betas outside [0, 1).
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.Adam(0.1), x), x, torch.ones(1))[0]
        tensor([0.9000])
    """

    def formula(self, s: Moments, x: Leaves, g: Leaves, /) -> tuple[Moments, Leaves]:
        m, v = self.moments(s, decayed(g, x, self.weight_decay))
        return Moments(m, v, s.step), self.ratio(m, v, s.step, self.lr)

    def kernel(self) -> Kernel | None:
        return _fused(self, decoupled=False)


def _fused(rule: TwoMoments, *, decoupled: bool) -> Kernel:
    """torch's kernel; `decoupled` says that the decay is added to the step, not to the gradient."""
    hyper: dict[str, Any] = {
        "lr": rule.lr, "betas": rule.betas, "eps": rule.eps, "weight_decay": rule.weight_decay
    }  # fmt: skip
    return lambda s, x, g, skip: fused.adam(
        x, g, s.exp_avg, s.exp_avg_sq, getattr(s, "max_exp_avg_sq", []), s.step, skip,
        decoupled=decoupled, **hyper,
    )  # fmt: skip


@functor
@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101).

    ``d = adam + lr·weight_decay·x`` where adam is `Adam`'s step.

    Args:
        lr: the learning rate. (default: 1e-3)
        betas: the decay rates β₁, β₂ of the two moments. (default: (0.9, 0.999))
        eps: added to the denominator. (default: 1e-8)
        weight_decay: the decay. (default: 1e-2)
        couple: whether the decay is multiplied by `lr`, as in torch; if not,
            ``d = adam + weight_decay·x``, as in the paper. (default: True)

    Raises:
        ValueError: as `Adam`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.AdamW(0.1, weight_decay=0.5), x), x, torch.ones(1))[0]
        tensor([0.8500])
    """

    weight_decay: Hyper = 1e-2
    couple: bool = True

    def formula(self, s: Moments, x: Leaves, g: Leaves, /) -> tuple[Moments, Leaves]:
        m, v = self.moments(s, g)
        rate = self.lr * self.weight_decay if self.couple else self.weight_decay
        return Moments(m, v, s.step), decayed(self.ratio(m, v, s.step, self.lr), x, rate)

    def kernel(self) -> Kernel | None:
        return _fused(self, decoupled=True) if self.couple else None


class MaxMoments(NamedTuple):
    """Moments, and the largest second moment so far, named as in torch."""

    exp_avg: Any
    exp_avg_sq: Any
    max_exp_avg_sq: Any
    step: Any


@functor
@dataclass(frozen=True)
class AMSGrad(TwoMoments):
    """Adam whose second moment never falls (Reddi et al. 2018, arXiv 1904.09237).

    As `Adam`, with the largest v so far in the place of v; torch's ``Adam(amsgrad=True)``.

    Args:
        lr: the learning rate. (default: 1e-3)
        betas: the decay rates β₁, β₂ of the two moments. (default: (0.9, 0.999))
        eps: added to the denominator. (default: 1e-8)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)
        decoupled_weight_decay: whether ``lr·weight_decay·x`` is added to the step instead, as in
            `AdamW`. (default: False)

    Raises:
        ValueError: as `Adam`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.AMSGrad(0.1), x), x, torch.ones(1))[0]
        tensor([0.9000])
    """

    decoupled_weight_decay: bool = False

    def init(self, param: Tensor, /) -> MaxMoments:
        m, v, largest = (torch.zeros_like(param) for _ in range(3))
        return MaxMoments(m, v, largest, counter(param))

    def formula(self, s: MaxMoments, x: Leaves, g: Leaves, /) -> tuple[MaxMoments, Leaves]:
        penalty, decay = split_decay(self)
        m, v = self.moments(s, decayed(g, x, penalty))
        largest = s.max_exp_avg_sq.maximum(v)
        return MaxMoments(m, v, largest, s.step), decayed(self.ratio(m, largest, s.step, self.lr), x, decay)

    def kernel(self) -> Kernel:
        return _fused(self, decoupled=self.decoupled_weight_decay)
