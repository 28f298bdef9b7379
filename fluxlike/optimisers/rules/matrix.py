"""Rules that see a parameter as a matrix: Adafactor and Muon."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from fluxlike.optimisers.batch import Batch, Moved, merged, on_part
from fluxlike.optimisers.checks import number, positive, whole, within
from fluxlike.optimisers.counters import counter
from fluxlike.optimisers.formula import Formula
from fluxlike.optimisers.leaves import Leaves, decayed, smaller
from fluxlike.optimisers.rule import Hyper, is_rule
from fluxlike.optimisers.rules.adam import AdamW
from fluxlike.placement.mesh import used
from fluxlike.trees.functor import functor

__all__ = ["Adafactor", "Muon"]


class AdafactorState(NamedTuple):
    """Mean squares of rows and columns, or of every number of a vector, named as in torch."""

    row_var: Any
    col_var: Any
    variance: Any
    step: Any


@functor
@dataclass(frozen=True)
class Adafactor(Formula):
    """Adafactor (Shazeer & Stern 2018, arXiv 1804.04235), as torch has it: memory of a row and a column.

    The second moment of a matrix (of the last two axes) is the product of those of its rows r and
    columns c, with the decay ``1 - t^beta2_decay``: ``v = r·c / mean(r)``, ``u = g/√v``,
    ``d = rate · u / max(1, rms(u)/d)`` with ``rate = max(eps₂, rms(x)) · min(lr, 1/√t)``.

    Args:
        lr: the largest learning rate, relative to the parameter. (default: 1e-2)
        beta2_decay: the power of t that the decay rate follows, at most 0. (default: -0.8)
        eps: the smallest root of v (None: that of the dtype), and the smallest rms of a parameter.
            (default: (None, 1e-3))
        d: the largest rms of a step. (default: 1)
        weight_decay: ``lr·weight_decay·x`` is added to the step. (default: 0)

    Raises:
        ValueError: a negative `lr`, `eps` or `weight_decay`, a `beta2_decay` above 0, or `d` below 1.
        TypeError: a hyperparameter of the wrong type; from `setup`, a complex parameter.

    Example:
        >>> import torch, fluxlike as fl
        >>> x = torch.ones(3, 4)
        >>> state = fl.setup(fl.Adafactor(), x)
        >>> state.state.row_var.shape, state.state.col_var.shape
        (torch.Size([3, 1]), torch.Size([1, 4]))
    """

    lr: Hyper = 1e-2
    beta2_decay: Hyper = -0.8
    eps: tuple[Hyper | None, Hyper] = (None, 1e-3)
    d: Hyper = 1.0
    weight_decay: Hyper = 0.0

    shared: ClassVar[tuple[str, ...]] = ("step",)
    elementwise: ClassVar[bool] = False
    real_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        positive("weight_decay", self.weight_decay)
        if number("beta2_decay", self.beta2_decay) and not self.beta2_decay <= 0:
            raise ValueError(f"beta2_decay={self.beta2_decay!r}: write a number of at most 0")
        if number("d", self.d) and not self.d >= 1:
            raise ValueError(f"d={self.d!r}: write a number of at least 1")
        if not isinstance(self.eps, tuple) or len(self.eps) != 2:
            raise ValueError(f"eps={self.eps!r}: write a pair, such as (None, 1e-3)")
        if self.eps[0] is not None:
            positive("eps[0]", self.eps[0])
        positive("eps[1]", self.eps[1])

    def init(self, param: Tensor, /) -> AdafactorState:
        if param.ndim < 2:
            return AdafactorState(None, None, torch.zeros_like(param), counter(param))
        nothing = torch.zeros_like(param)  # so that over a mesh the sums lie as those of gradients will
        row, col = (_settled(_mean_square(nothing, dim)) for dim in (-1, -2))
        return AdafactorState(row, col, None, counter(param, kind="matrix"))

    def formula(self, s: AdafactorState, x: Leaves, g: Leaves, /) -> tuple[AdafactorState, Leaves]:
        t, weight = s.step, s.step**self.beta2_decay
        eps1, eps2 = self.eps
        if eps1 is None:
            eps1 = torch.finfo(x.tensors[0].dtype).eps
        if s.variance is None:
            row = s.row_var.lerp(g.each(lambda t: _settled(_mean_square(t, -1))), weight)
            col = s.col_var.lerp(g.each(lambda t: _settled(_mean_square(t, -2))), weight)
            scale = row.each(lambda r: r.mean(-2, keepdim=True)).maximum(eps1)
            new = AdafactorState(row, col, None, t)
            v = row.each(torch.mul, col) / scale
        else:
            v = s.variance.lerp(g * g, weight)
            new = AdafactorState(None, None, v, t)
        u = g / v.maximum(eps1 * eps1).sqrt()
        rate = x.each(_rms).maximum(eps2) * smaller(self.lr, 1 / t**0.5)
        clip = (u.each(_rms) / self.d).maximum(1.0)
        return new, decayed(u * (rate / clip), x, self.lr * self.weight_decay)


def _mean_square(x: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dim, keepdim=True).square() / max(1, x.shape[dim])


def _settled(x: Tensor) -> Tensor:
    """A sum over an axis that the ranks divide, brought to all of them."""
    known = used.mesh()
    return x if known is None else known.settled(x)


def _rms(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x) / math.sqrt(x.numel()) if x.numel() else x.new_zeros(())


class MuonState(NamedTuple):
    """The velocity of one matrix, named as in torch."""

    momentum_buffer: Any


@functor
@dataclass(frozen=True)
class Muon(Formula):
    """Momentum whose step is made orthogonal (Jordan et al. 2024), for matrices; `rest` for the others.

    ``b ← momentum·b + (1-momentum)g``, ``u = g + momentum·(b - g)``,
    ``d = lr·(ratio·orthogonal(u) + weight_decay·x)``. A quintic Newton-Schulz iteration in bfloat16 brings
    the singular values of u near 1. Parameters with two axes are matrices; all others move by `rest`.
    Embeddings and the last layer should do so too: choose them by their path, with
    ``setup(lambda path: AdamW() if "embed" in path else Muon(), model)``.

    Args:
        lr: the learning rate. (default: 1e-3)
        weight_decay: the decay. (default: 0.1)
        momentum: how much of the velocity is kept. (default: 0.95)
        nesterov: whether to look ahead; if not, ``u = b``. (default: True)
        ns_coefficients: those of the iteration. (default: (3.4445, -4.775, 2.0315))
        eps: the smallest norm that u is divided by. (default: 1e-7)
        ns_steps: the number of iterations. (default: 5)
        adjust_lr_fn: ``"original"``, a ratio of ``√max(1, rows/columns)``; or ``"match_rms_adamw"``,
            ``0.2·√max(rows, columns)``, with which AdamW's rates can be kept. (default: "original")
        rest: the rule for parameters that aren't matrices. (default: AdamW())

    Raises:
        ValueError: a negative `lr`, `weight_decay` or `eps`, a `momentum` outside [0, 1), an unknown
            `adjust_lr_fn`.
        TypeError: a hyperparameter of the wrong type, or `rest` is no rule; from `setup`, a complex
            parameter.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Dense(4, 3)
        >>> state = fl.setup(fl.Muon(0.02), model)
        >>> type(state.weight.state).__name__, type(state.bias.state).__name__
        ('MuonState', 'Moments')
    """

    lr: Hyper = 1e-3
    weight_decay: Hyper = 0.1
    momentum: Hyper = 0.95
    nesterov: bool = True
    ns_coefficients: tuple[float, float, float] = (3.4445, -4.775, 2.0315)
    eps: float = 1e-7
    ns_steps: int = 5
    adjust_lr_fn: Literal["original", "match_rms_adamw"] | None = None
    rest: Any = field(default_factory=AdamW)

    elementwise: ClassVar[bool] = False
    real_only: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "eps"):
            positive(name, getattr(self, name))
        within("momentum", self.momentum)
        if self.adjust_lr_fn not in (None, "original", "match_rms_adamw"):
            raise ValueError(f"adjust_lr_fn={self.adjust_lr_fn!r}: write 'original' or 'match_rms_adamw'")
        whole("ns_steps", self.ns_steps, least=0)
        if not isinstance(self.ns_coefficients, tuple) or len(self.ns_coefficients) != 3:
            raise ValueError(f"ns_coefficients={self.ns_coefficients!r}: write three numbers")
        for k, c in enumerate(self.ns_coefficients):
            if number(f"ns_coefficients[{k}]", c) and not math.isfinite(c):
                raise ValueError(f"ns_coefficients[{k}]={c!r}: write a finite number")
        if not is_rule(self.rest):
            raise TypeError(f"rest is {self.rest!r}; write a rule, such as AdamW()")

    def init(self, param: Tensor, /) -> Any:
        return MuonState(torch.zeros_like(param)) if param.ndim == 2 else self.rest.init(param)

    def parts(self, state: Any, param: Tensor, /) -> list[tuple[Any, Any, Tensor]]:
        """The rule that moves a parameter in the place of this one."""
        return [] if isinstance(state, MuonState) else [(self.rest, state, param)]

    def perform(self, batch: Batch, /) -> Moved:
        matrices = [k for k, s in enumerate(batch.states) if isinstance(s, MuonState)]
        others = [k for k, s in enumerate(batch.states) if not isinstance(s, MuonState)]
        if not others:
            return super().perform(batch)
        parts = [on_part(self.rest, batch, others)]
        return merged(batch, [*parts, on_part(self, batch, matrices)] if matrices else parts)

    def formula(self, s: MuonState, x: Leaves, g: Leaves, /) -> tuple[MuonState, Leaves]:
        b = s.momentum_buffer.lerp(g, 1 - self.momentum)
        u = g.lerp(b, self.momentum) if self.nesterov else b
        step = u.each(lambda t: self._orthogonal(t) * self._ratio(t))
        return MuonState(b), decayed(step, x, self.weight_decay) * self.lr

    def _orthogonal(self, x: Tensor) -> Tensor:
        """A matrix with singular values near 1 and the singular vectors of x."""
        known = used.mesh()
        if known is not None and known.over(x):  # parts that are summed in another order round otherwise
            return known.divided(self._orthogonal(known.whole(x)), x)
        a, b, c = self.ns_coefficients
        y = x.to(torch.bfloat16)
        tall = x.shape[0] > x.shape[1]
        y = y.mT if tall else y
        y = y / torch.linalg.vector_norm(y).clamp(min=self.eps)
        for _ in range(self.ns_steps):
            gram = y @ y.mT
            y = torch.addmm(y, torch.addmm(gram, gram, gram, beta=b, alpha=c), y, beta=a)
        return (y.mT if tall else y).to(x.dtype)

    def _ratio(self, x: Tensor) -> float:
        rows, columns = x.shape
        if self.adjust_lr_fn == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, rows / max(1, columns)))
