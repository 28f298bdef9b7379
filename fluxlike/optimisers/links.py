"""Links: rules that change a gradient on its way to the rule that steps, and the chain of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.optimisers import lists
from fluxlike.optimisers.lists import Tensors
from fluxlike.optimisers.rule import Hyper, LeafError, ListRule, Rule, forms, is_rule, positive
from fluxlike.trees.functor import functor

__all__ = ["ClipGlobalNorm", "ClipGrad", "ClipNorm", "OptimiserChain", "WeightDecay", "apply_all", "decayed"]


def decayed(grads: Sequence[Tensor], params: Sequence[Tensor], rate: Hyper) -> Tensors:
    """``g + rate·x`` for every leaf."""
    if not isinstance(rate, Tensor) and rate == 0:
        return list(grads)
    return lists.add(grads, lists.mul(params, rate))


def apply_all(
    rule: Rule, states: Sequence[Any], params: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[list[Any], Tensors]:
    """Apply a rule to leaves that share it: at once if it can, else one by one."""
    if forms(type(rule))[0]:
        after, steps = rule.apply_all(states, params, grads)  # type: ignore[attr-defined]
        return list(after), list(steps)
    results = [_apply_one(rule, k, *leaf) for k, leaf in enumerate(zip(states, params, grads, strict=True))]
    return [s for s, _ in results], [d for _, d in results]


def _apply_one(rule: Rule, k: int, state: Any, param: Tensor, grad: Tensor) -> tuple[Any, Tensor]:
    before = (param._version, grad._version)
    result = rule.apply(state, param, grad)
    if (param._version, grad._version) != before:
        raise LeafError(k, "apply changed its arguments in place; compute new tensors instead")
    if not isinstance(result, tuple) or len(result) != 2:
        raise LeafError(k, f"apply returned a {type(result).__name__}; return (state, step)")
    return result


@functor
@dataclass(frozen=True)
class WeightDecay(ListRule):
    """L2 penalty: ``g + weight_decay·x``.

    Args:
        weight_decay: the penalty. (default: 5e-4)

    Raises:
        ValueError: a negative `weight_decay`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.WeightDecay(0.1).apply(None, torch.tensor([10.0]), torch.tensor([2.0]))[1]
        tensor([3.])
    """

    weight_decay: Hyper = 5e-4

    def __post_init__(self) -> None:
        positive("weight_decay", self.weight_decay)

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[None], Tensors]:
        return states, decayed(grads, params, self.weight_decay)


@functor
@dataclass(frozen=True)
class ClipGrad(ListRule):
    """Limit every entry of the gradient to ±delta.

    Args:
        delta: the limit. (default: 10)

    Raises:
        ValueError: a negative `delta`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.ClipGrad(2.0).apply(None, torch.zeros(3), torch.tensor([-5.0, 1.0, 3.0]))[1]
        tensor([-2.,  1.,  2.])
    """

    delta: Hyper = 10.0

    def __post_init__(self) -> None:
        positive("delta", self.delta)

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[None], Tensors]:
        return states, lists.clamp(grads, -self.delta, self.delta)


@functor
@dataclass(frozen=True)
class ClipNorm(ListRule):
    """Scale the gradient of each parameter to a norm of at most `max_norm`.

    ``g · min(max_norm/‖g‖ₚ, 1)``, parameter by parameter; `ClipGlobalNorm` takes them together.

    Args:
        max_norm: the largest norm. (default: 10)
        p: the order of the norm. (default: 2)
        throw: whether a norm that is NaN or infinite is an error. (default: True)

    Raises:
        ValueError: a negative `max_norm`; from `update`, a norm that is not finite.

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

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[None], Tensors]:
        norms = lists.norms(grads, self.p)
        if self.throw and not functorch.active():  # a transform has no values to look at
            finite = torch.stack([torch.isfinite(n).to(norms[0].device) for n in norms])
            if not bool(finite.all()):
                k = int((~finite).nonzero()[0])
                raise LeafError(
                    k,
                    f"the norm of the gradient is {float(norms[k])}; fluxlike.find_nonfinite(grads) "
                    "names all such places, and ClipNorm(throw=False) goes on",
                )
        # Divided only where the norm is too large, so that a zero gradient can be differentiated.
        larger = [n > self.max_norm for n in norms]
        factors = [
            torch.where(big, self.max_norm / torch.where(big, n, 1.0), 1.0)
            for big, n in zip(larger, norms, strict=True)
        ]
        return states, lists.mul(grads, factors)


@functor
@dataclass(frozen=True)
class ClipGlobalNorm(ListRule):
    """Scale all gradients together, so that their norm as one vector is at most `max_norm`.

    ``g · min(max_norm/(‖all g‖ₚ + 1e-6), 1)``, as ``torch.nn.utils.clip_grad_norm_``. The norm is
    over all leaves that share the link: parameters that are frozen or have no gradient don't count,
    and tied ones count once.

    Args:
        max_norm: the largest norm. (default: 1)
        p: the order of the norm. (default: 2)

    Raises:
        ValueError: a negative `max_norm`.

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

    def apply_all(
        self, states: Sequence[None], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[Sequence[None], Tensors]:
        device = grads[0].device
        norms = torch.stack([n.to(device) for n in lists.norms(grads, self.p)])
        total = torch.linalg.vector_norm(norms, self.p)
        factor = torch.clamp(self.max_norm / (total + 1e-6), max=1.0)
        if all(g.device == device and g.dtype == factor.dtype for g in grads):
            return states, lists.mul(grads, factor)
        return states, [g * factor.to(g.device) for g in grads]


@functor
@dataclass(frozen=True, init=False)
class OptimiserChain(ListRule):
    """Several rules in a row: each gets the step of the one before as its gradient.

    Chains run link by link over all leaves, so a link such as `ClipGlobalNorm` sees all of them. A
    chain inside a chain is laid out flat; an empty chain subtracts the gradient itself.

    Args:
        rules: the links, first to last.

    Raises:
        TypeError: something that is no rule.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.OptimiserChain(fl.WeightDecay(1e-4), fl.Momentum(0.1))
        OptimiserChain(WeightDecay(weight_decay=0.0001), Momentum(lr=0.1, momentum=0.9))
    """

    rules: tuple[Any, ...]

    def __init__(self, *rules: Any) -> None:
        flat: list[Any] = []
        for rule in rules:
            if not is_rule(rule):
                hint = "OptimiserChain(*rules)" if isinstance(rule, (list, tuple)) else "Adam(), not Adam"
                raise TypeError(f"OptimiserChain takes rules, found {rule!r}; write {hint}")
            flat.extend(rule.rules if isinstance(rule, OptimiserChain) else [rule])
        object.__setattr__(self, "rules", tuple(flat))

    def __repr__(self) -> str:
        return f"OptimiserChain({', '.join(map(repr, self.rules))})"

    def init(self, param: Tensor, /) -> tuple[Any, ...]:
        return tuple(rule.init(param) for rule in self.rules)

    def apply_all(
        self, states: Sequence[tuple[Any, ...]], params: Sequence[Tensor], grads: Sequence[Tensor], /
    ) -> tuple[list[tuple[Any, ...]], Tensors]:
        after, steps = [], list(grads)
        for k, rule in enumerate(self.rules):
            link, steps = apply_all(rule, [s[k] for s in states], params, steps)
            after.append(link)
        return [tuple(s) for s in zip(*after, strict=True)] if after else [()] * len(states), steps
