"""The rules: how a parameter x moves by its gradient g. Each returns the step d of x ← x - d.

Where torch.optim has a rule, formula and defaults are torch's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fluxlike._private import fused
from fluxlike.optimisers import lists
from fluxlike.optimisers.links import decayed
from fluxlike.optimisers.lists import Tensors
from fluxlike.optimisers.rule import Hyper, ListRule, count, positive, two_rates, within
from fluxlike.trees.functor import functor

__all__ = ["Adam", "AdamState", "AdamW", "Descent", "Momentum", "Nesterov"]


@functor
@dataclass(frozen=True)
class Descent(ListRule):
    """Gradient descent: ``d = lr·g``.

    Args:
        lr: the learning rate. (default: 1e-3)

    Raises:
        ValueError: a negative `lr`.

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

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[None], Tensors]:
        return states, lists.mul(grads, self.lr)


@functor
@dataclass(frozen=True)
class Momentum(ListRule):
    """Descent with momentum (Polyak 1964): ``v ← momentum·v + g``, ``d = lr·v``.

    Args:
        lr: the learning rate. (default: 1e-3)
        momentum: how much of the velocity is kept. (default: 0.9)

    Raises:
        ValueError: a negative `lr`, or a `momentum` outside [0, 1).

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

    def apply_all(
        self, states: Sequence[Tensor], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Tensors, Tensors]:
        velocities = lists.add(lists.mul(states, self.momentum), grads)
        return velocities, lists.mul(velocities, self.lr)


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

    Example:
        >>> import torch, fluxlike as fl
        >>> rule = fl.Nesterov(0.001)
        >>> rule.apply(rule.init(torch.ones(1)), torch.ones(1), torch.tensor([0.5]))[1]
        tensor([0.0010])
    """

    def apply_all(
        self, states: Sequence[Tensor], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Tensors, Tensors]:
        velocities = lists.add(lists.mul(states, self.momentum), grads)
        ahead = lists.add(lists.mul(velocities, self.momentum), grads)
        return velocities, lists.mul(ahead, self.lr)


class AdamState(NamedTuple):
    """The moments of one parameter, named as in torch."""

    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor


@functor
@dataclass(frozen=True)
class Adam(ListRule):
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

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.Adam(0.1), x), x, torch.ones(1))[0]
        tensor([0.9000])
    """

    lr: Hyper = 1e-3
    betas: tuple[Hyper, Hyper] = (0.9, 0.999)
    eps: Hyper = 1e-8
    weight_decay: Hyper = 0.0

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay"):
            positive(name, getattr(self, name))
        two_rates("betas", self.betas)

    def init(self, param: Tensor, /) -> AdamState:
        return AdamState(torch.zeros_like(param), torch.zeros_like(param), count(param))

    def apply_all(
        self, states: Sequence[AdamState], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[list[AdamState], Tensors]:
        return self._adam(states, decayed(grads, params, self.weight_decay))

    def move_all(
        self, states: Sequence[AdamState], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[list[AdamState], Tensors] | None:
        return self._move(fused.adam, states, params, grads)

    def _move(
        self,
        kernel: fused.Kernel,
        states: Sequence[AdamState],
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
    ) -> tuple[list[AdamState], Tensors] | None:
        hyper = (self.lr, *self.betas, self.eps, self.weight_decay)
        m, v = [s.exp_avg for s in states], [s.exp_avg_sq for s in states]
        grads = [g.contiguous() for g in grads]  # that of a sum is one number, expanded
        if any(isinstance(h, Tensor) for h in hyper) or not fused.can_fuse(params, grads, m, v):
            return None
        steps = lists.add([s.step for s in states], 1)
        p, m, v = fused.run(kernel, params, grads, m, v, steps, hyper)
        return [AdamState(*s) for s in zip(m, v, steps, strict=True)], p

    def _adam(self, states: Sequence[AdamState], grads: Sequence[Tensor]) -> tuple[list[AdamState], Tensors]:
        beta1, beta2 = self.betas
        m = lists.lerp([s.exp_avg for s in states], grads, 1 - beta1)
        v = lists.addcmul(lists.mul([s.exp_avg_sq for s in states], beta2), grads, grads, 1 - beta2)
        steps = lists.add([s.step for s in states], 1)
        t = [_wide(s) for s in steps]
        m_hat = lists.div(m, [1 - beta1**k for k in t])
        root = lists.div(lists.sqrt(v), [(1 - beta2**k).sqrt() for k in t])
        d = lists.mul(lists.div(m_hat, lists.add(root, self.eps)), self.lr)
        return [AdamState(*s) for s in zip(m, v, steps, strict=True)], d


def _wide(count: Tensor) -> Tensor:
    """A counter in the dtype in which powers of decay rates are taken."""
    return count.float() if count.device.type == "mps" else count.double()


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

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> fl.update(fl.setup(fl.AdamW(0.1, weight_decay=0.5), x), x, torch.ones(1))[0]
        tensor([0.8500])
    """

    weight_decay: Hyper = 1e-2
    couple: bool = True

    def apply_all(
        self, states: Sequence[AdamState], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[list[AdamState], Tensors]:
        after, d = self._adam(states, grads)
        rate = self.lr * self.weight_decay if self.couple else self.weight_decay
        return after, decayed(d, params, rate)

    def move_all(
        self, states: Sequence[AdamState], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[list[AdamState], Tensors] | None:
        return self._move(fused.adamw, states, params, grads) if self.couple else None
