"""Rules that are Adam but for one part: its momentum, its start, its denominator, its step, or its length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.checks import positive
from fluxlike.optimisers.counters import counter
from fluxlike.optimisers.leaves import Leaves, Scalar, decayed, where
from fluxlike.optimisers.rule import Hyper
from fluxlike.optimisers.rules.adam.moments import Moments, TwoMoments, split_decay
from fluxlike.trees.functor import functor

__all__ = ["AdaBelief", "AdaMax", "Lamb", "NAdam", "OAdam", "RAdam"]


class NAdamState(NamedTuple):
    """Moments, and the product of the momenta so far, named as in torch."""

    exp_avg: Any
    exp_avg_sq: Any
    mu_product: Any
    step: Any


@functor
@dataclass(frozen=True)
class NAdam(TwoMoments):
    """Adam with Nesterov's momentum (Dozat 2016).

    ``μₜ = β₁(1 - 0.96^(t·momentum_decay)/2)``,
    ``d = lr · ((1-μₜ)g/(1-Πμ) + μₜ₊₁m/(1-Πμ·μₜ₊₁)) / (√v^ + eps)``.

    Args:
        lr: the learning rate. (default: 2e-3)
        betas: the decay rates β₁, β₂ of the two moments. (default: (0.9, 0.999))
        eps: added to the denominator. (default: 1e-8)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)
        momentum_decay: how fast the momentum rises to β₁. (default: 4e-3)
        decoupled_weight_decay: whether ``lr·weight_decay·x`` is added to the step instead, as in
            `AdamW`. (default: False)

    Raises:
        ValueError: as `Adam`, or a negative `momentum_decay`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.NAdam(0.1), x), x, torch.ones(1))[0]
        tensor([0.8944])
    """

    lr: Hyper = 2e-3
    momentum_decay: Hyper = 4e-3
    decoupled_weight_decay: bool = False

    shared: ClassVar[tuple[str, ...]] = ("step", "mu_product")

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("momentum_decay", self.momentum_decay)

    def init(self, param: Tensor, /) -> NAdamState:
        return NAdamState(
            torch.zeros_like(param), torch.zeros_like(param), counter(param, start=1.0), counter(param)
        )

    def formula(self, s: NAdamState, x: Leaves, g: Leaves, /) -> tuple[NAdamState, Leaves]:
        t, lr = s.step, self.lr
        penalty, decay = split_decay(self)
        g = decayed(g, x, penalty)
        m, v = self.moments(s, g)
        mu, mu_next = self._momentum(t), self._momentum(t + 1)
        product = s.mu_product * mu
        root = v.sqrt() / self.corrections(t)[1] ** 0.5 + self.eps
        look = g * ((1 - mu) / (1 - product)) + m * (mu_next / (1 - product * mu_next))
        return NAdamState(m, v, product, t), decayed(look / root * lr, x, decay)

    def _momentum(self, t: Scalar) -> Scalar:
        return self.betas[0] * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))


@functor
@dataclass(frozen=True)
class RAdam(TwoMoments):
    """Adam that steps without v until its variance is tractable (Liu et al. 2020, arXiv 1908.03265).

    With ``ρ∞ = 2/(1-β₂) - 1`` and ``ρ = ρ∞ - 2tβ₂ᵗ/(1-β₂ᵗ)``: for ρ > 5,
    ``d = lr·r·m^/(√v + eps)·√(1-β₂ᵗ)`` with ``r² = (ρ-4)(ρ-2)ρ∞ / ((ρ∞-4)(ρ∞-2)ρ)``; before,
    ``d = lr·m^``.

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
        >>> fl.update(fl.setup(fl.RAdam(0.1), x), x, torch.ones(1))[0]
        tensor([0.9000])
    """

    decoupled_weight_decay: bool = False

    def formula(self, s: Moments, x: Leaves, g: Leaves, /) -> tuple[Moments, Leaves]:
        penalty, decay = split_decay(self)
        m, v = self.moments(s, decayed(g, x, penalty))
        c1, c2 = self.corrections(s.step)
        tractable, rectified = self._rectifier(s.step, c2)
        d = where(tractable, m / (v.sqrt() + self.eps) * (rectified * c2**0.5), m) * (self.lr / c1)
        return Moments(m, v, s.step), decayed(d, x, decay)

    def _rectifier(self, t: Scalar, c2: Scalar) -> tuple[Any, Scalar]:
        """Whether the variance is tractable, and r (1 where it is not)."""
        limit = 2 / (1 - self.betas[1]) - 1
        if not isinstance(limit, Tensor) and limit <= 5:  # rho stays below it
            return False, 1.0
        rho = limit - 2 * t * (1 - c2) / c2
        tractable = rho > 5
        # What isn't taken must have a finite root all the same, for its derivative.
        safe, top = where(tractable, rho, 6.0), where(limit > 5, limit, 6.0)
        return tractable, (((safe - 4) * (safe - 2) * top) / ((top - 4) * (top - 2) * safe)) ** 0.5


class AdaMaxState(NamedTuple):
    """The first moment, and the decaying maximum, named as in torch."""

    exp_avg: Any
    exp_inf: Any
    step: Any


@functor
@dataclass(frozen=True)
class AdaMax(TwoMoments):
    """Adam by the maximum norm (Kingma & Ba 2015, arXiv 1412.6980, algorithm 2).

    ``u ← max(β₂u, |g| + eps)``, ``d = lr · m/(1-β₁ᵗ) / u``.

    Args:
        lr: the learning rate. (default: 2e-3)
        betas: the decay rates β₁, β₂. (default: (0.9, 0.999))
        eps: added to the size of the gradient. (default: 1e-8)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)

    Raises:
        ValueError: as `Adam`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.AdaMax(0.1), x), x, torch.ones(1))[0]
        tensor([0.9000])
    """

    lr: Hyper = 2e-3

    def init(self, param: Tensor, /) -> AdaMaxState:
        return AdaMaxState(torch.zeros_like(param), torch.zeros_like(param), counter(param))

    def formula(self, s: AdaMaxState, x: Leaves, g: Leaves, /) -> tuple[AdaMaxState, Leaves]:
        beta1, beta2 = self.betas
        g = decayed(g, x, self.weight_decay)
        m = s.exp_avg.lerp(g, 1 - beta1)
        u = (s.exp_inf * beta2).maximum(g.abs() + self.eps)
        return AdaMaxState(m, u, s.step), m / u * (self.lr / (1 - beta1**s.step))


class OAdamState(NamedTuple):
    """Moments, and the step before."""

    exp_avg: Any
    exp_avg_sq: Any
    last: Any
    step: Any


@functor
@dataclass(frozen=True)
class OAdam(TwoMoments):
    """Optimistic Adam (Daskalakis et al. 2018, arXiv 1711.00141), for games such as GANs.

    ``d = 2·termₜ - termₜ₋₁`` where term is `Adam`'s step.

    Args:
        lr: the learning rate. (default: 1e-3)
        betas: the decay rates β₁, β₂ of the two moments. (default: (0.5, 0.9))
        eps: added to the denominator. (default: 1e-8)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)

    Raises:
        ValueError: as `Adam`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.OAdam(0.1), x), x, torch.ones(1))[0]
        tensor([0.8000])
    """

    betas: tuple[Hyper, Hyper] = (0.5, 0.9)

    def init(self, param: Tensor, /) -> OAdamState:
        m, v, last = (torch.zeros_like(param) for _ in range(3))
        return OAdamState(m, v, last, counter(param))

    def formula(self, s: OAdamState, x: Leaves, g: Leaves, /) -> tuple[OAdamState, Leaves]:
        m, v = self.moments(s, decayed(g, x, self.weight_decay))
        term = self.ratio(m, v, s.step, self.lr)
        return OAdamState(m, v, term, s.step), term * 2.0 - s.last


@functor
@dataclass(frozen=True)
class AdaBelief(TwoMoments):
    """Adam by the variance about the mean (Zhuang et al. 2020, arXiv 2010.07468).

    ``m ← β₁m + (1-β₁)g``, ``s ← β₂s + (1-β₂)(g-m)² + eps``, ``d = lr · m^/(√s^ + eps)``.

    Args:
        lr: the learning rate. (default: 1e-3)
        betas: the decay rates β₁, β₂ of mean and variance. (default: (0.9, 0.999))
        eps: added to the variance and to the denominator. (default: 1e-16)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)

    Raises:
        ValueError: as `Adam`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.AdaBelief(0.001), x), x, torch.tensor([0.5]))[0]
        tensor([0.9989])
    """

    eps: Hyper = 1e-16

    def formula(self, s: Moments, x: Leaves, g: Leaves, /) -> tuple[Moments, Leaves]:
        beta1, beta2 = self.betas
        g = decayed(g, x, self.weight_decay)
        m = s.exp_avg.lerp(g, 1 - beta1)
        surprise = g - m
        v = (s.exp_avg_sq * beta2).add_product(surprise, surprise, 1 - beta2) + self.eps
        return Moments(m, v, s.step), self.ratio(m, v, s.step, self.lr)


@functor
@dataclass(frozen=True)
class Lamb(TwoMoments):
    """`AdamW` scaled, parameter by parameter, to the parameter's norm (You et al. 2020, arXiv 1904.00962).

    With ``u = m^/(√v^ + eps) + weight_decay·x``: ``d = lr · ‖x‖/‖u‖ · u``, and ``d = lr·u`` where
    either norm is 0.

    Args:
        lr: the learning rate. (default: 1e-3)
        betas: the decay rates β₁, β₂ of the two moments. (default: (0.9, 0.999))
        eps: added to the denominator. (default: 1e-6)
        weight_decay: the decay. (default: 0)

    Raises:
        ValueError: as `Adam`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.tensor([3.0, 4.0])
        >>> fl.update(fl.setup(fl.Lamb(0.1), x), x, torch.ones(2))[0]
        tensor([2.6464, 3.6464])
    """

    eps: Hyper = 1e-6

    elementwise: ClassVar[bool] = False

    def formula(self, s: Moments, x: Leaves, g: Leaves, /) -> tuple[Moments, Leaves]:
        m, v = self.moments(s, g)
        u = decayed(self.ratio(m, v, s.step), x, self.weight_decay)
        return Moments(m, v, s.step), u * x.each(_trust, u) * self.lr


def _trust(x: Tensor, u: Tensor) -> Tensor:
    """``‖x‖/‖u‖``, and 1 where either is 0."""
    size, length = (torch.linalg.vector_norm(t) if bool(t.numel()) else t.new_zeros(()) for t in (x, u))
    both = (size > 0) & (length > 0)
    return torch.where(both, size / torch.where(both, length, 1.0), 1.0)
