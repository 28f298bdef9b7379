"""Positions in a sequence: rotary and sinusoidal."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fluxlike.layers.checks import refuse_input
from fluxlike.trees.functor import functor

__all__ = ["RotaryEmbedding", "SinusoidalEmbedding"]


@functor
@dataclass(frozen=True)
class RotaryEmbedding:
    """Positions as rotations of queries and keys (Su et al. 2021, arXiv 2104.09864).

    Pair j of the features at position m is turned by the angle m·base^(-2j/dim), so that the product of a
    query and a key depends on how far apart they are, not on where. A MultiHeadAttention takes one as
    ``rotary=`` and turns its queries and keys.

    Args:
        dim: how many features are turned, an even number: a head's size, or less to leave the last
            features as they are.
        base: how slow the slowest pair turns. (default: 10000)
        interleaved: which features are a pair: neighbours, 2j and 2j + 1, as in the paper and GPT-J, or,
            where False, j and j + dim/2, as in GPT-NeoX and LLaMA. Weights trained with one do not work
            with the other. (default: False)

    Attributes:
        dim: how many features are turned.
        base: the base.
        interleaved: whether neighbours are pairs.

    Input: (…, L, D) with D of at least `dim`, and positions that broadcast to (…, L). (default: 0 to L - 1)
    Output: the same shape. Angles are computed in at least float32.

    Raises:
        ValueError: an odd `dim`; from a call: fewer features.

    Example:
        >>> import torch, fluxlike as fl
        >>> rotary = fl.RotaryEmbedding(2)
        >>> rotary(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]))
        tensor([[ 1.0000,  0.0000],
                [ 0.5403,  0.8415],
                [-0.4161,  0.9093]])
        >>> fl.MultiHeadAttention(64, 4, rotary=fl.RotaryEmbedding(16))(torch.ones(2, 10, 64)).shape
        torch.Size([2, 10, 64])
    """

    dim: int
    base: float = 10000.0
    interleaved: bool = False

    def __post_init__(self) -> None:
        _require_even("RotaryEmbedding", self.dim)

    def __call__(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[-1] < self.dim:
            refuse_input("RotaryEmbedding", x, f"(…, L, D) with D of at least {self.dim}")
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        angle = _angles(positions, self.dim, self.base, x.dtype)
        return _turn(x, angle.cos(), angle.sin(), self.dim, self.interleaved).to(x.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.dim}"
            + (f", base={self.base}" if self.base != 10000.0 else "")
            + (", interleaved=True" if self.interleaved else "")
        )


@functor
@dataclass(frozen=True)
class SinusoidalEmbedding:
    """Positions as sines and cosines (Vaswani et al. 2017, arXiv 1706.03762).

    Feature 2j of position m is sin(m·base^(-2j/dim)), and feature 2j + 1 the cosine. It stands in the place
    of an Embedding of positions, has no parameters and knows no last position.

    Args:
        dim: how many features, an even number.
        base: how slow the slowest wave is. (default: 10000)

    Attributes:
        dim: how many features.
        base: the base.

    Input: positions of any shape, whole numbers or not (times of a diffusion, say). Output: one axis more, in
    the dtype of the positions if that is floating, else in torch's default dtype.

    Raises:
        ValueError: an odd `dim`.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.SinusoidalEmbedding(4)(torch.arange(3))
        tensor([[ 0.0000,  1.0000,  0.0000,  1.0000],
                [ 0.8415,  0.5403,  0.0100,  0.9999],
                [ 0.9093, -0.4161,  0.0200,  0.9998]])
    """

    dim: int
    base: float = 10000.0

    def __post_init__(self) -> None:
        _require_even("SinusoidalEmbedding", self.dim)

    def __call__(self, positions: Tensor) -> Tensor:
        if not isinstance(positions, Tensor) or positions.is_complex():
            found = positions.dtype if isinstance(positions, Tensor) else type(positions).__name__
            raise TypeError(
                f"SinusoidalEmbedding takes a tensor of positions, found {found}; write torch.arange(n)"
            )
        dtype = positions.dtype if positions.is_floating_point() else torch.get_default_dtype()
        angle = _angles(positions, self.dim, self.base, dtype)
        return torch.stack((angle.sin(), angle.cos()), -1).flatten(-2).to(dtype)

    def extra_repr(self) -> str:
        return f"{self.dim}" + (f", base={self.base}" if self.base != 10000.0 else "")


def _angles(positions: Tensor, dim: int, base: float, dtype: torch.dtype) -> Tensor:
    """The angle of each pair of features at each position, (…, dim/2), in at least float32."""
    wide = torch.promote_types(dtype, torch.float32)
    pairs = torch.arange(0, dim, 2, dtype=wide, device=positions.device)
    return positions.to(wide)[..., None] * base ** (pairs / -dim)


def _turn(x: Tensor, cos: Tensor, sin: Tensor, dim: int, interleaved: bool) -> Tensor:
    """`x` with each pair of its first `dim` features turned by an angle."""
    turned, rest = x[..., :dim], x[..., dim:]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    a, b = a * cos - b * sin, b * cos + a * sin
    if interleaved:
        a, b = torch.stack((a, b), -1).flatten(-2), rest
        return torch.cat((a, b), -1) if rest.shape[-1] else a
    return torch.cat((a, b, rest) if rest.shape[-1] else (a, b), -1)


def _require_even(name: str, dim: int) -> None:
    if not isinstance(dim, int) or dim < 2 or dim % 2:
        raise ValueError(f"{name}({dim!r}): features are turned in pairs; write an even number, at least 2")
