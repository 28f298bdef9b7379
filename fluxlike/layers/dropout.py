"""Dropout, AlphaDropout and DropPath: what train mode leaves out at random."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.random import bernoulli
from fluxlike.scope import draws
from fluxlike.scope.mode import training
from fluxlike.scope.seeded import active
from fluxlike.trees.functor import functor

__all__ = ["AlphaDropout", "DropPath", "Dropout", "dropout", "require_probability"]


@functor(children=("p",))
class Dropout:
    """In train mode, zero each entry with probability p and scale the others by 1/(1-p).

    (Srivastava et al. 2014, jmlr.org/papers/v15/srivastava14a.) In test mode, nothing. Draws from the key in
    scope; where there is none, from torch's generator, so ``torch.manual_seed`` works.

    Args:
        p: the probability. (default: 0.5)
        dims: the axes along which entries are drawn apart; those that differ in other axes alone stay or
            go together. So (0, 1) drops whole channels of each example, as torch's Dropout2d does
            (Tompson et al. 2015, arXiv 1411.4280). (default: None, all axes)

    Attributes:
        p: the probability.
        dims: the axes, or None.

    Raises:
        TypeError: `p` is no number; from a call in train mode: no tensor of floats.
        ValueError: `p` outside [0, 1], an axis named twice; from a call: an axis that is not there.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Dropout(0.5)(torch.ones(3))
        tensor([1., 1., 1.])
        >>> with fl.mode("train"), fl.seeded(fl.Key(0)):
        ...     fl.Dropout(0.5)(torch.ones(3))
        tensor([0., 2., 2.])
        >>> with fl.mode("train"), fl.seeded(fl.Key(0)):
        ...     fl.Dropout(0.5, dims=0)(torch.ones(3, 2))
        tensor([[0., 0.],
                [2., 2.],
                [2., 2.]])
    """

    dims: tuple[int, ...] | None

    def __init__(self, p: float = 0.5, *, dims: int | Sequence[int] | None = None) -> None:
        require_probability("Dropout", "p", p)
        self.p = p
        self.dims = (dims,) if isinstance(dims, int) else None if dims is None else tuple(dims)
        if self.dims is not None and len(set(self.dims)) != len(self.dims):
            raise ValueError(f"Dropout(dims={dims!r}): write each axis once")

    def __call__(self, x: Tensor) -> Tensor:
        if not training(self):
            return x
        if self.dims is None:
            return dropout(x, self.p, "Dropout")
        return _drop("Dropout", x, self.p, self.dims)

    def extra_repr(self) -> str:
        if self.dims is None:
            return f"{self.p}"
        return f"{self.p}, dims={self.dims[0] if len(self.dims) == 1 else self.dims}"


@functor
class AlphaDropout:
    """Dropout that keeps mean 0 and variance 1, for networks of `selu`.

    (Klambauer et al. 2017, arXiv 1706.02515.) In train mode each entry becomes selu's limit at -∞ with
    probability p; then all are scaled and shifted so that mean and variance stay. In test mode, nothing.
    Draws as `Dropout` does.

    Args:
        p: the probability. (default: 0.5)

    Attributes:
        p: the probability.

    Raises:
        TypeError: `p` is no number; from a call in train mode: no tensor of floats.
        ValueError: `p` outside [0, 1].

    Example:
        >>> import torch, fluxlike as fl
        >>> with fl.mode("train"), fl.seeded(fl.Key(0)):
        ...     fl.AlphaDropout(0.5)(torch.zeros(3))
        tensor([-0.7792,  0.7792,  0.7792])
    """

    def __init__(self, p: float = 0.5) -> None:
        require_probability("AlphaDropout", "p", p)
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        if not training(self):
            return x
        _require_floats("AlphaDropout", x)
        if active() is None:
            return F.alpha_dropout(x, self.p, training=True)
        if self.p == 1:  # then nothing is left to scale
            return x * 0.0
        a = 1 / math.sqrt((1 - self.p) * (1 + self.p * _LIMIT**2))
        kept = _kept(x.shape, self.p, x.device)
        return torch.where(kept, x, _LIMIT) * a - _LIMIT * a * self.p

    def extra_repr(self) -> str:
        return f"{self.p}"


_LIMIT = -1.7580993408473766  # selu's limit at -∞


@functor
class DropPath:
    """In train mode, zero whole examples with probability p and scale the others by 1/(1-p).

    Stochastic depth (Huang et al. 2016, arXiv 1603.09382): as the last step of a residual branch, it leaves
    the branch out. In test mode, nothing. Draws as `Dropout` does, one number an example.

    Args:
        p: the probability. (default: 0.5)

    Attributes:
        p: the probability.

    Input and output: (N, …).

    Raises:
        TypeError: `p` is no number; from a call in train mode: no tensor of floats.
        ValueError: `p` outside [0, 1]; from a call: a 0-d tensor.

    Example:
        >>> import torch, fluxlike as fl
        >>> block = fl.SkipConnection(fl.Chain(fl.Dense(2, 2), fl.DropPath(0.2)), torch.add)
        >>> with fl.mode("train"), fl.seeded(fl.Key(0)):
        ...     fl.DropPath(0.5)(torch.ones(3, 2))
        tensor([[0., 0.],
                [2., 2.],
                [2., 2.]])
    """

    def __init__(self, p: float = 0.5) -> None:
        require_probability("DropPath", "p", p)
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        return _drop("DropPath", x, self.p, (0,)) if training(self) else x

    def extra_repr(self) -> str:
        return f"{self.p}"


def _drop(name: str, x: Tensor, p: float, dims: tuple[int, ...]) -> Tensor:
    """`x` with what lies at one place along `dims` zeroed together."""
    _require_floats(name, x)
    if not all(-x.ndim <= d < x.ndim for d in dims):
        raise ValueError(f"{name} draws along the axes {dims}, found a tensor of shape {tuple(x.shape)}")
    apart = {d % x.ndim for d in dims}
    shape = [n if i in apart else 1 for i, n in enumerate(x.shape)]
    return x * _kept(shape, p, x.device) * draws.scale(p)


def _kept(shape: Sequence[int], p: float, device: torch.device) -> Tensor:
    """False with probability p: under a key the bits of `Dropout`, else torch's draws."""
    return bernoulli(shape, 1 - p, device=device) if active() is None else ~bernoulli(shape, p, device=device)


def dropout(x: Tensor, p: float, name: str = "dropout") -> Tensor:
    """`x` with entries zeroed with probability p and the others scaled by 1/(1-p), in any mode.

    Draws from the key in scope; where there is none, as torch's dropout does. `name` is for errors.

    Raises:
        TypeError: no tensor, or one whose dtype can't be scaled.
    """
    _require_floats(name, x)
    scope = active()
    if scope is None:
        return F.dropout(x, p, training=True)
    key, number = scope.next()
    return draws.dropout(key.data, number, x, p)


def _require_floats(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} takes a tensor, found {type(x).__name__}")
    if not (x.is_floating_point() or x.is_complex()):
        raise TypeError(f"{name} scales what it keeps, which {x.dtype} can't hold; write x.float()")


def require_probability(name: str, argument: str, p: float) -> None:
    """Refuse an argument that is no number from 0 to 1.

    Raises:
        TypeError: no number; a tensor would be trained.
        ValueError: outside [0, 1].
    """
    if not isinstance(p, Real):
        raise TypeError(f"{name}({argument}={p!r}): write a probability as a Python number, such as 0.5")
    if not 0 <= p <= 1:
        raise ValueError(f"{name}({argument}={p!r}): write a probability, from 0 to 1")
