"""The table of rules, and the models, gradients and runs that its tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fluxlike as fl

chain, schedules = fl.OptimiserChain, fl.schedules


@dataclass(frozen=True)
class Case:
    """A rule of the table.

    Attributes:
        make: the rule for a learning rate, a number or a 0-d tensor.
        lr: the rate for most tests.
        rosenbrock: for Rosenbrock's function the rate, the steps, and the value that it falls below from 4.
        regression: for the regression the rate, and the loss that it falls below in 100 steps.
        alone: whether a leaf moves alone as among others.
        elementwise: whether every number moves by itself.
        complex: whether it takes complex parameters.
        smooth: whether it computes in float64, so that derivatives can be compared with differences.
    """

    make: Callable[[Any], Any]
    lr: float
    rosenbrock: tuple[float, int, float]
    regression: tuple[float, float]
    alone: bool = True
    elementwise: bool = True
    complex: bool = True
    smooth: bool = True

    @property
    def rule(self) -> Any:
        """The rule at the rate for most tests."""
        return self.make(self.lr)


@fl.functor
@dataclass(frozen=True)
class Fading:
    """A user's own schedule, whose start may be a tensor."""

    start: Any

    def __call__(self, t: Any) -> Any:
        return self.start * 0.99**t


def around_adam(wrap: Callable[[Any], Any], **changes: Any) -> Case:
    """A case of something around or before Adam, which it hardly changes."""
    rates = {"lr": 0.05, "rosenbrock": (0.1, 200, 0.2), "regression": (0.1, 0.01)}
    return Case(lambda lr: wrap(fl.Adam(lr)), **{**rates, **changes})


CASES: dict[str, Case] = {
    "Descent": Case(fl.Descent, 0.05, (0.002, 400, 1.0), (0.2, 0.01)),
    "Momentum": Case(fl.Momentum, 0.05, (0.002, 200, 0.1), (0.05, 0.01)),
    "Nesterov": Case(fl.Nesterov, 0.05, (0.001, 200, 0.2), (0.1, 0.01)),
    "Rprop": Case(fl.Rprop, 0.05, (0.5, 200, 0.3), (0.1, 0.01)),
    "RMSProp": Case(fl.RMSProp, 0.05, (0.02, 400, 0.3), (0.02, 0.01)),
    "RMSProp, centred, momentum": Case(
        lambda lr: fl.RMSProp(lr, momentum=0.9, centered=True, weight_decay=1e-3),
        0.05, (0.01, 200, 0.1), (0.005, 0.01),
    ),
    "Adam": around_adam(lambda adam: adam),
    "Adam, weight_decay": Case(
        lambda lr: fl.Adam(lr, betas=(0.8, 0.95), eps=1e-6, weight_decay=1e-3),
        0.05, (0.05, 200, 0.1), (0.1, 0.01),
    ),
    "AdamW": Case(fl.AdamW, 0.05, (0.2, 200, 0.2), (0.1, 0.01)),
    "AdamW, uncoupled": Case(
        lambda lr: fl.AdamW(lr, weight_decay=1e-4, couple=False), 0.05, (0.1, 200, 0.2), (0.1, 0.01)
    ),
    "AdaMax": Case(fl.AdaMax, 0.05, (1.0, 200, 0.2), (0.2, 0.01)),
    "OAdam": Case(fl.OAdam, 0.05, (0.01, 400, 0.3), (0.05, 0.01)),
    "AdaGrad": Case(
        lambda lr: fl.AdaGrad(lr, lr_decay=1e-3, initial_accumulator_value=0.1),
        0.05, (1.0, 200, 0.6), (1.0, 0.01),
    ),
    "AdaDelta": Case(fl.AdaDelta, 0.5, (1.0, 400, 0.5), (10.0, 0.01)),
    "AMSGrad": Case(fl.AMSGrad, 0.05, (0.2, 200, 0.2), (0.1, 0.01)),
    "AMSGrad, decoupled": Case(
        lambda lr: fl.AMSGrad(lr, weight_decay=1e-3, decoupled_weight_decay=True),
        0.05, (0.2, 200, 0.2), (0.1, 0.01),
    ),
    "NAdam": Case(lambda lr: fl.NAdam(lr, weight_decay=1e-3), 0.05, (0.05, 200, 0.4), (0.1, 0.01)),
    "NAdam, decoupled": Case(
        lambda lr: fl.NAdam(lr, weight_decay=1e-3, decoupled_weight_decay=True),
        0.05, (0.05, 200, 0.4), (0.1, 0.01),
    ),
    # Its first five steps follow the gradient itself, which is steep there.
    "RAdam": Case(lambda lr: fl.RAdam(lr, weight_decay=1e-3), 0.05, (0.005, 600, 2.5), (0.2, 0.01)),
    "RAdam, decoupled": Case(
        lambda lr: fl.RAdam(lr, weight_decay=1e-3, decoupled_weight_decay=True),
        0.05, (0.005, 600, 2.5), (0.2, 0.01),
    ),
    "RAdam, short memory": Case(
        lambda lr: fl.RAdam(lr, betas=(0.9, 0.5)), 0.01, (0.01, 200, 0.1), (0.1, 0.01)
    ),
    "AdaBelief": Case(fl.AdaBelief, 0.05, (0.5, 200, 0.1), (0.1, 0.01)),
    "Lion": Case(lambda lr: fl.Lion(lr, weight_decay=0.01), 0.01, (0.02, 200, 0.3), (0.05, 0.05)),
    "Lamb": Case(
        lambda lr: fl.Lamb(lr, weight_decay=1e-3), 0.05, (0.1, 400, 0.6), (0.05, 0.01), elementwise=False
    ),
    "Adafactor": Case(
        lambda lr: fl.Adafactor(lr, weight_decay=1e-3), 0.05, (1.0, 200, 0.6), (0.5, 0.01),
        elementwise=False, complex=False,
    ),
    "Muon": Case(
        lambda lr: fl.Muon(lr, weight_decay=1e-3, rest=fl.AdamW(lr)), 0.05, (0.2, 200, 0.2), (0.1, 0.05),
        elementwise=False, complex=False, smooth=False,
    ),
    "ScheduleFree": Case(fl.ScheduleFree, 0.05, (0.2, 200, 0.1), (0.5, 0.01)),
    "ScheduleFree, warm-up": Case(
        lambda lr: fl.ScheduleFree(lr, weight_decay=1e-3, warmup_steps=4, r=0.5),
        0.05, (0.2, 200, 0.1), (0.5, 0.01),
    ),
    # Links before a rule that steps
    "empty chain": Case(lambda lr: chain(chain(), fl.Descent(lr)), 0.05, (0.002, 400, 1.0), (0.2, 0.01)),
    "ClipGrad": around_adam(lambda adam: chain(fl.ClipGrad(0.3), adam)),
    "ClipNorm": around_adam(lambda adam: chain(fl.ClipNorm(0.5), adam), elementwise=False),
    "ClipGlobalNorm": around_adam(
        lambda adam: chain(fl.ClipGlobalNorm(0.5), adam), alone=False, elementwise=False
    ),
    "WeightDecay": around_adam(lambda adam: chain(fl.WeightDecay(1e-3), adam)),
    "SignDecay": around_adam(lambda adam: chain(fl.SignDecay(1e-3), adam)),
    "AccumGrad": around_adam(lambda adam: chain(fl.AccumGrad(2), adam), rosenbrock=(0.5, 200, 0.2)),
    "several links": around_adam(
        lambda adam: chain(
            fl.AccumGrad(3), fl.ClipGlobalNorm(0.5, p=1.0), fl.ClipNorm(0.4, p=float("inf")), adam,
            fl.WeightDecay(1e-4),
        ),
        rosenbrock=(0.05, 200, 0.2), alone=False, elementwise=False,
    ),
    "AccumGrad twice": around_adam(
        lambda adam: chain(fl.AccumGrad(2), fl.AccumGrad(2), chain(fl.WeightDecay(1e-3), adam)),
        rosenbrock=(0.5, 200, 0.6), regression=(0.2, 0.1),
    ),
    # Wrappers
    "Scheduled": around_adam(lambda adam: fl.Scheduled(adam, eps=schedules.Exp(1e-3, 0.9))),
    "Scheduled, one's own": Case(
        lambda lr: fl.Scheduled(fl.Momentum(), lr=Fading(lr), momentum=schedules.Exp(0.9, 0.99)),
        0.05, (0.005, 200, 0.5), (0.1, 0.01),
    ),
    "Scheduled, pair": around_adam(
        lambda adam: fl.Scheduled(adam, betas=(schedules.Exp(0.9, 0.999), 0.99), weight_decay=1e-4)
    ),
    "Scheduled, around a clip": around_adam(
        lambda adam: fl.Scheduled(chain(fl.ClipGlobalNorm(0.5), adam), eps=schedules.Exp(1e-3, 0.9)),
        rosenbrock=(0.05, 200, 0.2), alone=False, elementwise=False,
    ),
    "MixedPrecision": around_adam(lambda adam: fl.MixedPrecision(torch.float64, adam)),
    "ApplyIfFinite, then decay": around_adam(
        lambda adam: chain(fl.ApplyIfFinite(adam), fl.WeightDecay(1e-4)), alone=False
    ),
    "EMA of Scheduled of AccumGrad": Case(
        lambda lr: fl.EMA(fl.Scheduled(chain(fl.AccumGrad(2), fl.Adam()), lr=Fading(lr)), decay=0.9),
        0.05, (0.5, 200, 0.4), (0.2, 0.05),
    ),
    "Lookahead of EMA of ScheduleFree": Case(
        lambda lr: fl.Lookahead(fl.EMA(fl.ScheduleFree(lr), decay=0.9), k=2),
        0.05, (0.2, 200, 0.5), (0.5, 0.01),
    ),
    "ApplyIfFinite of AccumGrad of Lookahead": around_adam(
        lambda adam: fl.ApplyIfFinite(chain(fl.AccumGrad(2), fl.Lookahead(adam, k=2))),
        rosenbrock=(1.0, 200, 0.2), regression=(0.5, 0.01), alone=False,
    ),
    "AccumGrad of ApplyIfFinite": around_adam(
        lambda adam: chain(fl.AccumGrad(2), fl.ApplyIfFinite(adam)), rosenbrock=(0.5, 200, 0.2), alone=False
    ),
    "AccumGrad of EMA of Muon": Case(
        lambda lr: chain(fl.AccumGrad(2), fl.EMA(fl.Muon(lr, weight_decay=1e-3, rest=fl.Momentum(lr)))),
        0.05, (0.002, 200, 0.2), (0.2, 0.1), elementwise=False, complex=False, smooth=False,
    ),
    "MixedPrecision of EMA of AccumGrad": around_adam(
        lambda adam: fl.MixedPrecision(torch.float64, fl.EMA(chain(fl.AccumGrad(2), adam), decay=0.9)),
        rosenbrock=(0.5, 200, 0.2),
    ),
    "Muon with clips inside": Case(
        lambda lr: fl.Muon(lr, rest=chain(fl.AccumGrad(2), fl.ClipNorm(0.5), fl.Adam(lr))),
        0.05, (0.1, 200, 0.2), (0.1, 0.05), elementwise=False, complex=False, smooth=False,
    ),
}  # fmt: skip


# Models, gradients and runs

SHAPES = {"matrix": (4, 3), "vector": (4,), "number": (), "kernel": (2, 3, 2, 2), "cube": (2, 1, 3)}


def randn(shape: Iterable[int], seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, of which those in other dtypes are casts."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x = torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed), dtype=wide)
    return x.to(dtype)


def model_of(
    dtype: torch.dtype = torch.float64, shapes: dict[str, tuple[int, ...]] = SHAPES, seed: int = 0
) -> dict[str, Tensor]:
    """A model with leaves of these shapes."""
    return {k: randn(shape, 100 * seed + i, dtype) for i, (k, shape) in enumerate(shapes.items())}


def grads_of(model: dict[str, Tensor], t: int) -> dict[str, Tensor | None]:
    """Gradients that depend on the step and on where the parameters are."""
    return {k: 0.3 * x + randn(x.shape, 1000 * t + sum(k.encode()), x.dtype) for k, x in model.items()}


Run = tuple[Any, Any]  # a model, and its state


def run(model: Any, state: Any, ts: Iterable[int], *, donate: bool = False) -> Run:
    """Model and state after steps with `grads_of`."""
    for t in ts:
        model, state = fl.update(state, model, grads_of(model, t), donate=donate)
    return model, state


def started(rule: Any, model: Any, steps: int = 2) -> Run:
    """A run that has begun."""
    return run(model, fl.setup(rule, model), range(steps))
