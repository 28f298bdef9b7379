"""A rule that moves a wide copy of each parameter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.batch import Batch, Moved, perform
from fluxlike.optimisers.rule import is_rule
from fluxlike.optimisers.wrappers.wrapper import Wrapper, wrapped
from fluxlike.trees.functor import functor

__all__ = ["MixedPrecision"]


class MixedState(NamedTuple):
    """The master copy of one parameter, and the state of the rule inside, which moves it."""

    master: Any
    inner: Any


@functor
@dataclass(frozen=True, repr=False)
class MixedPrecision(Wrapper):
    """A master copy of each parameter in a wider dtype; the model gets its value, rounded.

    Steps too small for the model's dtype add up in the copy (Micikevicius et al. 2018,
    arXiv 1710.03740). The rule inside computes in the wider dtype.

    Args:
        dtype: the dtype of copies and moments, such as ``torch.float32``.
        rule: the rule.

    Raises:
        TypeError: `rule` is no rule, or the two are swapped.
        ValueError: `dtype` is not float32 or float64.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = torch.ones(1, dtype=torch.bfloat16)
        >>> state = fl.setup(fl.MixedPrecision(torch.float32, fl.Descent(1e-3)), model)
        >>> model, state = fl.update(state, model, torch.ones(1, dtype=torch.bfloat16))
        >>> model, state.state.master
        (tensor([1.], dtype=torch.bfloat16), tensor([0.9990]))
    """

    dtype: torch.dtype
    rule: Any

    last_alone: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if is_rule(self.dtype):
            raise TypeError(
                "MixedPrecision takes the dtype first, then the rule: write "
                f"MixedPrecision(torch.float32, {self.dtype!r})"
            )
        if self.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype={self.dtype!r}: write MixedPrecision(torch.float32, rule), or torch.float64"
            )
        wrapped("MixedPrecision", self.rule)

    def init(self, param: Tensor, /) -> MixedState:
        master = param.to(self.dtype, copy=True)
        return MixedState(master, self.rule.init(master))

    def parts(self, state: MixedState, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        return [(self.rule, state.inner, state.master)]

    def belongs(self, state: MixedState, param: Tensor, /) -> bool:
        """Whether the master copy is that of a parameter: rounded, it is the same."""
        return (
            torch.equal(state.master.to(param.dtype), param)
            if not param.is_complex()
            else torch.equal(torch.view_as_complex(state.master).to(param.dtype), param)
        )

    def perform(self, batch: Batch, /) -> Moved:
        inner = batch.with_(
            states=[s.inner for s in batch.states],
            params=[s.master for s in batch.states],
            grads=[g.to(s.master.dtype) for g, s in zip(batch.grads, batch.states, strict=True)],
            last=True,
        )
        moved = perform(self.rule, inner)
        masters = moved.moved(inner)
        # A copy, so that model and state share no memory.
        params = [m.to(x.dtype, copy=True) for m, x in zip(masters, batch.params, strict=True)]
        states = [MixedState(*s) for s in zip(masters, moved.states, strict=True)]
        return Moved(states, None, params, moved.passing)
