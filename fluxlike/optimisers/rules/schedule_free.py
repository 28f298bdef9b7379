"""ScheduleFree: AdamW without a schedule, by an average of the iterates."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.checks import number, positive, two_rates, whole
from fluxlike.optimisers.counters import counter
from fluxlike.optimisers.formula import Formula
from fluxlike.optimisers.leaves import Leaves, Scalar, decayed, larger, smaller
from fluxlike.optimisers.rule import Hyper
from fluxlike.trees.functor import functor

__all__ = ["ScheduleFree"]


class ScheduleFreeState(NamedTuple):
    """The iterate z, the second moment, and what weighs the average."""

    z: Any
    exp_avg_sq: Any
    weight_sum: Any
    lr_max: Any
    step: Any


@functor
@dataclass(frozen=True)
class ScheduleFree(Formula):
    """AdamW whose rate needs no schedule (Defazio et al. 2024, arXiv 2405.15682).

    The model holds y, where gradients are taken; z takes the steps, and `averaged` gives their mean x,
    the model to evaluate and to keep:
    ``z ← z - lr·(g/(√v^ + eps) + weight_decay·y)``, ``x ← (1-c)x + cz``, ``y = (1-β₁)z + β₁x``,
    where c is this step's share of all weights ``tʳ·lr_maxᵖ`` so far.

    Args:
        lr: the learning rate, after the warm-up. (default: 2.5e-3)
        betas: the weight β₁ of the mean in y, and the decay rate β₂ of the second moment.
            (default: (0.9, 0.999))
        eps: added to the denominator. (default: 1e-8)
        weight_decay: the decay, at y. (default: 0)
        warmup_steps: steps over which the rate rises. (default: 0)
        r: the power of the step in the weights. (default: 0)
        weight_lr_power: the power p of the largest rate so far in the weights. (default: 2)

    Raises:
        ValueError: a negative hyperparameter, betas outside [0, 1), or β₁ = 0.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(1)
        >>> state = fl.setup(fl.ScheduleFree(0.1), x)
        >>> x, state = fl.update(state, x, torch.ones(1))
        >>> fl.averaged(state, x)
        tensor([0.9000])
    """

    lr: Hyper = 2.5e-3
    betas: tuple[Hyper, Hyper] = (0.9, 0.999)
    eps: Hyper = 1e-8
    weight_decay: Hyper = 0.0
    warmup_steps: int = 0
    r: Hyper = 0.0
    weight_lr_power: Hyper = 2.0

    shared: ClassVar[tuple[str, ...]] = ("step", "weight_sum", "lr_max")
    last_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("lr", "eps", "weight_decay", "r", "weight_lr_power"):
            positive(name, getattr(self, name))
        two_rates("betas", self.betas)
        whole("warmup_steps", self.warmup_steps, least=0)
        if number("betas[0]", self.betas[0]) and self.betas[0] == 0:
            raise ValueError("betas[0]=0: the mean can't be told from z; write a number above 0")

    def init(self, param: Tensor, /) -> ScheduleFreeState:
        total, largest = counter(param, start=0.0), counter(param, start=0.0)
        return ScheduleFreeState(param.clone(), torch.zeros_like(param), total, largest, counter(param))

    def average(self, state: ScheduleFreeState, param: Tensor, /) -> Tensor:
        """The mean x of one parameter: ``(y - (1-β₁)z)/β₁``."""
        beta1 = self.betas[0]
        return (param - (1 - beta1) * state.z) / beta1

    def formula(self, s: ScheduleFreeState, y: Leaves, g: Leaves, /) -> tuple[ScheduleFreeState, Leaves]:
        t = s.step
        beta1, beta2 = self.betas
        lr: Scalar = self.lr
        if self.warmup_steps:
            lr = smaller(t / self.warmup_steps, 1.0) * lr
        lr_max = larger(s.lr_max, lr)
        weight = t**self.r * lr_max**self.weight_lr_power
        total = s.weight_sum + weight
        c = weight / larger(total, sys.float_info.min)  # 0 as long as all rates are 0
        v = (s.exp_avg_sq * beta2).add_product(g, g, 1 - beta2)
        u = decayed(g / ((v / (1 - beta2**t)).sqrt() + self.eps), y, self.weight_decay)
        d = (y - s.z) * c + u * (lr * (1 - beta1 * (1 - c)))
        return ScheduleFreeState(s.z - u * lr, v, total, lr_max, t), d
