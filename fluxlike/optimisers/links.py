"""Links: rules that change a gradient on its way to the rule that steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike._private import functorch, tracing
from fluxlike.optimisers.batch import Batch, Moved, held
from fluxlike.optimisers.checks import positive, whole
from fluxlike.optimisers.counters import both, counter
from fluxlike.optimisers.formula import Formula
from fluxlike.optimisers.leaves import Leaves, decayed, norms, where
from fluxlike.optimisers.rule import Hyper, LeafError, ListRule
from fluxlike.trees.functor import functor

__all__ = ["AccumGrad", "ClipGlobalNorm", "ClipGrad", "ClipNorm", "SignDecay", "WeightDecay"]


@functor
@dataclass(frozen=True)
class WeightDecay(Formula):
    """L2 penalty: ``g + weight_decay·x``.

    Args:
        weight_decay: the penalty. (default: 5e-4)

    Raises:
        ValueError: a negative `weight_decay`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.WeightDecay(0.1).apply(None, torch.tensor([10.0]), torch.tensor([2.0]))[1]
        tensor([3.])
    """

    weight_decay: Hyper = 5e-4

    def __post_init__(self) -> None:
        positive("weight_decay", self.weight_decay)

    def formula(self, state: None, x: Leaves, g: Leaves, /) -> tuple[None, Leaves]:
        return None, decayed(g, x, self.weight_decay)


@functor
@dataclass(frozen=True)
class SignDecay(Formula):
    """L1 penalty: ``g + weight_decay·sign(x)``.

    Args:
        weight_decay: the penalty. (default: 1e-3)

    Raises:
        ValueError: a negative `weight_decay`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.SignDecay(0.1).apply(None, torch.tensor([10.0, -3.0]), torch.tensor([2.0, 2.0]))[1]
        tensor([2.1000, 1.9000])
    """

    weight_decay: Hyper = 1e-3

    def __post_init__(self) -> None:
        positive("weight_decay", self.weight_decay)

    def formula(self, state: None, x: Leaves, g: Leaves, /) -> tuple[None, Leaves]:
        return None, decayed(g, x.sign(), self.weight_decay)


@functor
@dataclass(frozen=True)
class ClipGrad(Formula):
    """Limit every entry of the gradient to ±delta.

    Args:
        delta: the limit. (default: 10)

    Raises:
        ValueError: a negative `delta`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.ClipGrad(2.0).apply(None, torch.zeros(3), torch.tensor([-5.0, 1.0, 3.0]))[1]
        tensor([-2.,  1.,  2.])
    """

    delta: Hyper = 10.0

    def __post_init__(self) -> None:
        positive("delta", self.delta)

    def formula(self, state: None, x: Leaves, g: Leaves, /) -> tuple[None, Leaves]:
        return None, g.maximum(-self.delta).minimum(self.delta)


@functor
@dataclass(frozen=True)
class ClipNorm(ListRule):
    """Scale the gradient of each parameter to a norm of at most `max_norm`.

    ``g · min(max_norm/‖g‖ₚ, 1)``, parameter by parameter; `ClipGlobalNorm` takes them together.
    A complex gradient counts as pairs of real numbers, which for p = 2 is the same.

    Args:
        max_norm: the largest norm. (default: 10)
        p: the order of the norm. (default: 2)
        throw: whether a norm that is NaN or infinite is an error, for which each step waits for the
            device. (default: True)

    Raises:
        ValueError: a negative `max_norm`; from `update`, a norm that is not finite.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.ClipNorm(1.0).apply(None, torch.zeros(2), torch.tensor([3.0, 4.0]))[1]
        tensor([0.6000, 0.8000])
    """

    max_norm: Hyper = 10.0
    p: float = 2.0
    throw: bool = True

    def __post_init__(self) -> None:
        positive("max_norm", self.max_norm)
        positive("p", self.p, zero=False)

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[None], list[Tensor]]:
        return states, self._clipped(grads, [None] * len(grads))

    def perform(self, batch: Batch, /) -> Moved:
        steps = self._clipped(batch.grads, batch.passing)
        return held(batch, list(batch.states), steps)

    def _clipped(self, grads: Sequence[Tensor], passing: Sequence[Tensor | None]) -> list[Tensor]:
        found = norms(grads, self.p)
        has_values = (
            tracing.concrete() and found[0].device.type != "meta"
        )  # inside a transform there are none
        if self.throw and has_values:
            self._require_finite(found, passing)
        # Divided only where the norm is too large, so that a zero gradient can be differentiated.
        larger = [n > self.max_norm for n in found]
        factors = [
            torch.where(big, self.max_norm / torch.where(big, n, 1.0), 1.0)
            for big, n in zip(larger, found, strict=True)
        ]
        return [g * f for g, f in zip(grads, factors, strict=True)]

    def _require_finite(self, found: Sequence[Tensor], passing: Sequence[Tensor | None]) -> None:
        device = found[0].device
        masks = [torch.isfinite(n) for n in found]
        masks = [f if m is None else f | ~m for f, m in zip(masks, passing, strict=True)]
        fine = torch.stack([f.to(device) for f in masks])
        if not bool(fine.all()):
            k = int((~fine).nonzero()[0])
            raise LeafError(
                k,
                f"the norm of the gradient is {float(found[k])}; fluxlike.find_nonfinite(grads) "
                "names all such places, and ClipNorm(throw=False) goes on",
            )


@functor
@dataclass(frozen=True)
class ClipGlobalNorm(ListRule):
    """Scale all gradients together, so that their norm as one vector is at most `max_norm`.

    ``g · min(max_norm/(‖all g‖ₚ + 1e-6), 1)``, as ``torch.nn.utils.clip_grad_norm_``. The norm is
    over all leaves that share the link: parameters that are frozen or have no gradient don't count,
    and tied ones count once. A complex gradient counts as pairs of real numbers, which for p = 2 is
    the same. As there, a norm that is NaN or infinite is no error, for which a step would have to wait
    for the device, and it spoils all gradients; a chain inside `ApplyIfFinite` skips such a step.

    Args:
        max_norm: the largest norm. (default: 1)
        p: the order of the norm. (default: 2)

    Raises:
        ValueError: a negative `max_norm`.
        TypeError: a hyperparameter that is neither a number nor a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = [torch.zeros(1), torch.zeros(1)]
        >>> state = fl.setup(fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Descent(1.0)), model)
        >>> fl.update(state, model, [torch.tensor([3.0]), torch.tensor([4.0])])[0]
        [tensor([-0.6000]), tensor([-0.8000])]
    """

    max_norm: Hyper = 1.0
    p: float = 2.0

    def __post_init__(self) -> None:
        positive("max_norm", self.max_norm)
        positive("p", self.p, zero=False)

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[None], list[Tensor]]:
        device = grads[0].device
        total = torch.linalg.vector_norm(torch.stack([n.to(device) for n in norms(grads, self.p)]), self.p)
        factor = torch.clamp(self.max_norm / (total + 1e-6), max=1.0)
        alike = all(g.device == device and g.dtype == factor.dtype for g in grads)
        if alike and not functorch.active():
            return states, (Leaves(grads) * factor).tensors
        return states, [g * factor.to(g.device) for g in grads]


class AccumGradState(NamedTuple):
    """The mean of the gradients since the last step, so far."""

    mean: Any
    step: Any


@functor
@dataclass(frozen=True)
class AccumGrad(Formula):
    """Pass on the mean of n gradients every n-th step; between, nothing moves.

    Links after it, and the wrappers around it, hold still between: their moments, counters and
    averages move with every n-th step alone. It does so by a mask, without looking at values.

    Args:
        n: the number of gradients.

    Raises:
        ValueError: `n` is no whole number of at least 1.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.tensor([1.0])
        >>> state = fl.setup(fl.OptimiserChain(fl.AccumGrad(2), fl.Descent(0.1)), x)
        >>> x, state = fl.update(state, x, torch.tensor([1.0])); x
        tensor([1.])
        >>> x, state = fl.update(state, x, torch.tensor([3.0])); x
        tensor([0.8000])
    """

    n: int

    shared: ClassVar[tuple[str, ...]] = ("step",)

    def __post_init__(self) -> None:
        whole("n", self.n, least=1)

    def init(self, param: Tensor, /) -> AccumGradState:
        return AccumGradState(torch.zeros_like(param), counter(param))

    def formula(self, s: AccumGradState, x: Leaves, g: Leaves, /) -> tuple[AccumGradState, Leaves]:
        full = s.step % self.n == 0
        mean = s.mean + g * (1 / self.n)
        nothing = mean.each(torch.zeros_like)
        return AccumGradState(where(full, nothing, mean), s.step), where(full, mean, nothing)

    def perform(self, batch: Batch, /) -> Moved:
        moved = super().perform(batch)
        full: dict[int, Tensor] = {}  # leaves that count together share a mask
        counts = [s.step for s in moved.states]
        for t in counts:
            if id(t) not in full:
                full[id(t)] = t % self.n == 0
        moved.passing = both(batch.passing, [full[id(t)] for t in counts])
        return moved
