"""Rates that adapt to each number by its squared gradients: AdaGrad, AdaDelta, RMSProp."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike._private import fused
from fluxlike.optimisers.checks import positive, within
from fluxlike.optimisers.counters import counter
from fluxlike.optimisers.formula import Formula, Kernel
from fluxlike.optimisers.leaves import Leaves, decayed
from fluxlike.optimisers.rule import Hyper
from fluxlike.trees.functor import functor

__all__ = ["AdaDelta", "AdaGrad", "RMSProp"]


class AdaGradState(NamedTuple):
    """The sum of squared gradients of one parameter, named as in torch."""

    sum: Any
    step: Any


@functor
@dataclass(frozen=True)
class AdaGrad(Formula):
    """AdaGrad (Duchi et al. 2011): ``s ← s + g²``, ``d = lr/(1 + (t-1)·lr_decay) · g/(√s + eps)``.

    Args:
        lr: the learning rate. (default: 1e-2)
        lr_decay: how fast the rate falls. (default: 0)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)
        initial_accumulator_value: where the sum starts. (default: 0)
        eps: added to the denominator. (default: 1e-10)

    Raises:
        ValueError: a negative hyperparameter.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.AdaGrad(0.1), x), x, torch.tensor([5.0]))[0]
        tensor([0.9000])
    """

    lr: Hyper = 1e-2
    lr_decay: Hyper = 0.0
    weight_decay: Hyper = 0.0
    initial_accumulator_value: Hyper = 0.0
    eps: Hyper = 1e-10

    shared: ClassVar[tuple[str, ...]] = ("step",)

    def __post_init__(self) -> None:
        for name in ("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"):
            positive(name, getattr(self, name))

    def init(self, param: Tensor, /) -> AdaGradState:
        return AdaGradState(torch.zeros_like(param) + self.initial_accumulator_value, counter(param))

    def formula(self, s: AdaGradState, x: Leaves, g: Leaves, /) -> tuple[AdaGradState, Leaves]:
        g = decayed(g, x, self.weight_decay)
        total = s.sum.add_product(g, g)
        rate = self.lr / (1 + (s.step - 1) * self.lr_decay)
        return AdaGradState(total, s.step), g / (total.sqrt() + self.eps) * rate

    def kernel(self) -> Kernel:
        hyper: dict[str, Any] = {
            name: getattr(self, name) for name in ("lr", "lr_decay", "weight_decay", "eps")
        }
        return lambda s, x, g, skip: fused.adagrad(x, g, s.sum, s.step, skip, **hyper)


class AdaDeltaState(NamedTuple):
    """Running means of squared gradients and of squared steps, named as in torch."""

    square_avg: Any
    acc_delta: Any


@functor
@dataclass(frozen=True)
class AdaDelta(Formula):
    """AdaDelta (Zeiler 2012, arXiv 1212.5701).

    ``v ← rho·v + (1-rho)g²``, ``Δ = √(u + eps)/√(v + eps) · g``, ``u ← rho·u + (1-rho)Δ²``,
    ``d = lr·Δ``.

    Args:
        lr: the learning rate. (default: 1)
        rho: the decay rate of the means. (default: 0.9)
        eps: added under the roots. (default: 1e-6)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)

    Raises:
        ValueError: a negative `lr`, `eps` or `weight_decay`, or a `rho` outside [0, 1).
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.AdaDelta(), x), x, torch.tensor([5.0]))[0]
        tensor([0.9968])
    """

    lr: Hyper = 1.0
    rho: Hyper = 0.9
    eps: Hyper = 1e-6
    weight_decay: Hyper = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            positive(name, getattr(self, name))
        within("rho", self.rho)

    def init(self, param: Tensor, /) -> AdaDeltaState:
        return AdaDeltaState(torch.zeros_like(param), torch.zeros_like(param))

    def formula(self, s: AdaDeltaState, x: Leaves, g: Leaves, /) -> tuple[AdaDeltaState, Leaves]:
        rho, eps = self.rho, self.eps
        g = decayed(g, x, self.weight_decay)
        v = (s.square_avg * rho).add_product(g, g, 1 - rho)
        delta = (s.acc_delta + eps).sqrt() / (v + eps).sqrt() * g
        u = (s.acc_delta * rho).add_product(delta, delta, 1 - rho)
        return AdaDeltaState(v, u), delta * self.lr


class RMSPropState(NamedTuple):
    """Running means of squared gradients and of gradients, and the velocity, named as in torch."""

    square_avg: Any
    grad_avg: Any  # None unless centred
    momentum_buffer: Any  # None without momentum


@functor(scalars=("lr", "alpha", "eps", "weight_decay"))  # whether there is momentum decides the state
@dataclass(frozen=True)
class RMSProp(Formula):
    """RMSProp (Tieleman & Hinton 2012; centred as in Graves 2013, arXiv 1308.0850).

    ``v ← alpha·v + (1-alpha)g²``, ``Δ = g/(√v + eps)``; centred, with v less the square of the mean
    gradient under the root; with momentum, ``b ← momentum·b + Δ`` and ``d = lr·b``, else ``d = lr·Δ``.

    Args:
        lr: the learning rate. (default: 1e-2)
        alpha: the decay rate of the means. (default: 0.99)
        eps: added to the denominator. (default: 1e-8)
        weight_decay: L2 penalty, added to the gradient as ``weight_decay·x``. (default: 0)
        momentum: how much of the velocity is kept. (default: 0)
        centered: whether the gradient's variance is taken in place of its mean square.
            (default: False)

    Raises:
        ValueError: a negative `lr`, `eps` or `weight_decay`, or an `alpha` or `momentum` outside
            [0, 1).
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.RMSProp(), x), x, torch.tensor([5.0]))[0]
        tensor([0.9000])
    """

    lr: Hyper = 1e-2
    alpha: Hyper = 0.99
    eps: Hyper = 1e-8
    weight_decay: Hyper = 0.0
    momentum: Hyper = 0.0
    centered: bool = False

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            positive(name, getattr(self, name))
        within("alpha", self.alpha)
        within("momentum", self.momentum)

    def init(self, param: Tensor, /) -> RMSPropState:
        return RMSPropState(
            torch.zeros_like(param),
            torch.zeros_like(param) if self.centered else None,
            torch.zeros_like(param) if self._has_momentum() else None,
        )

    def _has_momentum(self) -> bool:
        return isinstance(self.momentum, Tensor) or self.momentum > 0

    def formula(self, s: RMSPropState, x: Leaves, g: Leaves, /) -> tuple[RMSPropState, Leaves]:
        for name, wanted in (("grad_avg", self.centered), ("momentum_buffer", self._has_momentum())):
            if (getattr(s, name) is not None) != wanted:
                raise ValueError(
                    f"the state was set up {'without' if wanted else 'with'} {name}, which RMSProp's "
                    "momentum and centered decide; call setup(rule, model) again"
                )
        g = decayed(g, x, self.weight_decay)
        v = (s.square_avg * self.alpha).add_product(g, g, 1 - self.alpha)
        mean, variance = s.grad_avg, v
        if mean is not None:
            mean = mean.lerp(g, 1 - self.alpha)
            variance = v.add_product(mean, mean, -1.0).maximum(0.0)
        d = g / (variance.sqrt() + self.eps)
        velocity = s.momentum_buffer
        if velocity is not None:
            d = velocity = velocity * self.momentum + d
        return RMSPropState(v, mean, velocity), d * self.lr
