"""Rules in a row: each gets the step of the one before as its gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fluxlike.optimisers.batch import Batch, Moved, perform
from fluxlike.optimisers.rule import hook, is_rule, rules_in
from fluxlike.optimisers.wrappers.wrapper import Wrapper
from fluxlike.trees.functor import functor
from fluxlike.trees.show import value_text

__all__ = ["OptimiserChain"]


@functor
@dataclass(frozen=True, init=False)
class OptimiserChain(Wrapper):
    """Several rules in a row: each gets the step of the one before as its gradient.

    Chains run link by link over all leaves, so a link such as `ClipGlobalNorm` sees all of them. A
    chain inside a chain is laid out flat; an empty chain subtracts the gradient itself.

    Args:
        rules: the links, first to last.

    Raises:
        TypeError: something that is no rule.
        ValueError: a link before the last that keeps a copy of the parameters, such as `EMA`.

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
                raise TypeError(f"OptimiserChain takes rules, found {value_text(rule)}; write {hint}")
            flat.extend(rule.rules if isinstance(rule, OptimiserChain) else [rule])
        for rule in flat[:-1]:
            if any(hook(part, "last_alone") for part in rules_in(rule)):
                raise ValueError(
                    f"{rule!r} keeps a copy of the parameters that it moves, so no link can come after it; "
                    "write it last, or around the chain"
                )
        object.__setattr__(self, "rules", tuple(flat))

    def __repr__(self) -> str:
        return f"OptimiserChain({', '.join(map(repr, self.rules))})"

    def init(self, param: Tensor, /) -> tuple[Any, ...]:
        return tuple(rule.init(param) for rule in self.rules)

    def parts(self, state: tuple[Any, ...], param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(rule, s, param) for rule, s in zip(self.rules, state, strict=True)]

    def perform(self, batch: Batch, /) -> Moved:
        moved = Moved(batch.states, batch.grads, None, batch.passing)
        links = []
        for k, rule in enumerate(self.rules):
            states = [s[k] for s in batch.states]
            last = batch.last and k == len(self.rules) - 1
            link = batch.with_(states=states, grads=moved.stepped(batch), passing=moved.passing, last=last)
            moved = perform(rule, link)
            links.append(moved.states)
        after = [tuple(s) for s in zip(*links, strict=True)] if links else [()] * len(batch.states)
        return Moved(after, moved.steps, moved.params, moved.passing)
