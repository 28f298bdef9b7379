"""A rule that rests where a gradient is not finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.batch import Batch, Moved, perform
from fluxlike.optimisers.counters import both, counter
from fluxlike.optimisers.leaves import norms
from fluxlike.optimisers.wrappers.wrapper import Wrapper, wrapped
from fluxlike.placement.mesh import used
from fluxlike.trees.functor import functor

__all__ = ["ApplyIfFinite"]


class FiniteState(NamedTuple):
    """The state of the rule inside, and how many steps were skipped, in a row and in all."""

    inner: Any
    in_a_row: Any
    skipped: Any


@functor
@dataclass(frozen=True, repr=False)
class ApplyIfFinite(Wrapper):
    """Skip a step where a gradient is NaN or infinite: parameters and state stay as they are.

    One such number holds back all parameters that share the rule. The state counts the skipped
    steps, in a row and in all; look at them, since a run that skips every step is lost.

    Args:
        rule: the rule.

    Raises:
        TypeError: `rule` is no rule.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(2)
        >>> state = fl.setup(fl.ApplyIfFinite(fl.Descent(0.1)), x)
        >>> x, state = fl.update(state, x, torch.tensor([1.0, float("inf")]))
        >>> x, state.state.skipped
        (tensor([1., 1.]), tensor(1))
    """

    rule: Any

    def __post_init__(self) -> None:
        wrapped("ApplyIfFinite", self.rule)

    def init(self, param: Tensor, /) -> FiniteState:
        return FiniteState(self.rule.init(param), counter(param), counter(param))

    def parts(self, state: FiniteState, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(self.rule, state.inner, param)]

    def perform(self, batch: Batch, /) -> Moved:
        device = batch.grads[0].device
        sizes = [n.detach().to(device) for n in norms(batch.grads, float("inf"))]
        finite = torch.stack([torch.isfinite(n) for n in sizes]).all()
        mesh = used.mesh()
        if mesh is not None:
            finite = mesh.whole(finite)
        there = {g.device: finite.to(g.device) for g in batch.grads}
        passing = both(batch.passing, [there[g.device] for g in batch.grads])
        moved = perform(self.rule, batch.with_(states=[s.inner for s in batch.states], passing=passing))
        one_more = {d: 1 - m.to(torch.int64) for d, m in there.items()}
        known: dict[Any, Tensor] = {}
        for k, (s, g) in enumerate(zip(batch.states, batch.grads, strict=True)):
            more, mask = one_more[g.device], batch.passing[k]
            for name, t in (("in_a_row", s.in_a_row), ("skipped", s.skipped)):
                key = (name, id(t), id(mask))
                if key not in known:
                    new = (t + 1) * more if name == "in_a_row" else t + more
                    known[key] = new if mask is None else torch.where(mask, new, t)
            moved.states[k] = FiniteState(
                moved.states[k],
                known["in_a_row", id(s.in_a_row), id(mask)],
                known["skipped", id(s.skipped), id(mask)],
            )
        return moved
