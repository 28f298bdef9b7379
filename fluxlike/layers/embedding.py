"""Tables of vectors, looked up by index: Embedding and EmbeddingBag."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Init
from fluxlike.layers.construct import new_weight
from fluxlike.random import normal
from fluxlike.transforms.motors import derived_again
from fluxlike.trees.functor import functor

__all__ = ["Embedding", "EmbeddingBag"]

_INDICES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_MODES = ("sum", "mean", "max")


@autosized()
@functor
class Embedding:
    """A table of vectors, looked up by index.

    Args:
        num_embeddings: how many vectors there are.
        embedding_dim: their length.
        init: makes the table from its shape. (default: standard normal, as in torch)

    Attributes:
        weight: (num_embeddings, embedding_dim).

    Input: integers of any shape. Output: the vectors, one axis more.

    Raises:
        IndexError: from a call on the CPU: an index outside the table.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Embedding(10, 3)(torch.tensor([[1, 2], [3, 9]])).shape
        torch.Size([2, 2, 3])
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, init: Init = normal) -> None:
        self.weight = new_weight("Embedding", init, (num_embeddings, embedding_dim))

    def __call__(self, indices: Tensor) -> Tensor:
        wide = _wide("Embedding", indices)
        try:
            return F.embedding(wide, self.weight)
        except IndexError:
            _explain_range("Embedding", self.weight, indices)
            raise

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"{rows}, {columns}"


@autosized()
@functor(children=("weight",))
class EmbeddingBag:
    """One vector for a bag of indices: the sum, mean or maximum of their vectors in a table.

    A bag of none gives zeros. The vectors themselves are never all in memory, except under `vmap`, in
    forward mode and in a gradient inside a gradient, which torch's kernel does not know.

    Args:
        num_embeddings: how many vectors there are.
        embedding_dim: their length.
        mode: "sum", "mean" or "max". (default: "mean")
        init: makes the table from its shape. (default: standard normal, as in torch)

    Attributes:
        weight: (num_embeddings, embedding_dim).

    Called with `indices`, `offsets` and `per_sample_weights`, the last two optional. Integers of shape
    (N, L) are N bags; integers of one axis are bags of any length, and `offsets`, of shape (N,), says where
    each starts, the first at 0. `per_sample_weights`, of the shape of `indices`, multiply the vectors of a
    sum. Output: (N, embedding_dim).

    Raises:
        ValueError: an unknown mode; from a call, indices of another number of axes, one axis without
            offsets, weights with another mode than "sum".
        IndexError: from a call on the CPU: an index outside the table.

    Example:
        >>> import torch, fluxlike as fl
        >>> bag = fl.EmbeddingBag(4, 1, mode="sum", init=lambda shape: torch.arange(4.0).reshape(shape))
        >>> bag(torch.tensor([[1, 2], [3, 3]]))
        tensor([[3.],
                [6.]])
        >>> bag(torch.tensor([1, 2, 3]), torch.tensor([0, 1]))
        tensor([[1.],
                [5.]])
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, mode: str = "mean", init: Init = normal
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode={mode!r}: write one of {', '.join(_MODES)}")
        self.weight = new_weight("EmbeddingBag", init, (num_embeddings, embedding_dim))
        self.mode = mode

    def __call__(
        self, indices: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        wide = _wide("EmbeddingBag", indices)
        self._check(indices, offsets, per_sample_weights)
        starts = None if offsets is None else offsets.to(wide.dtype)
        if indices.shape[-1] == 0 or derived_again():
            return self._written_out(wide, starts, per_sample_weights)
        try:
            return F.embedding_bag(
                wide, self.weight, starts, mode=self.mode, per_sample_weights=per_sample_weights
            )
        except RuntimeError:
            _explain_range("EmbeddingBag", self.weight, indices)
            raise

    def _written_out(self, indices: Tensor, starts: Tensor | None, weights: Tensor | None) -> Tensor:
        """The same from the vectors themselves."""
        rows = F.embedding(indices, self.weight)
        if weights is not None:
            rows = rows * weights.unsqueeze(-1)
        if starts is None:
            return _reduce(rows, torch.ones_like(indices, dtype=torch.bool), self.mode)
        places = torch.arange(indices.shape[0], device=indices.device)
        bags = (places.unsqueeze(-1) >= starts).sum(-1) - 1
        inside = bags == torch.arange(starts.shape[0], device=indices.device).unsqueeze(-1)
        return _reduce(rows.expand(*inside.shape, -1), inside, self.mode)

    def _check(self, indices: Tensor, offsets: Any, weights: Any) -> None:
        if indices.ndim not in (1, 2) or (indices.ndim == 2) != (offsets is None):
            hint = "; write indices.unsqueeze(0) for one bag" if indices.ndim == 1 else ""
            raise ValueError(
                "EmbeddingBag takes indices of shape (N, L), or (L,) with offsets, found "
                f"{tuple(indices.shape)} with{'out' if offsets is None else ''} offsets{hint}"
            )
        if offsets is not None:
            _wide("EmbeddingBag's offsets", offsets)
        if weights is not None and (self.mode != "sum" or weights.shape != indices.shape):
            raise ValueError(
                f"EmbeddingBag takes per_sample_weights of the shape of the indices and mode='sum', found "
                f"{tuple(weights.shape)} for {tuple(indices.shape)} and mode={self.mode!r}"
            )

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"{rows}, {columns}" + ("" if self.mode == "mean" else f", mode={self.mode!r}")


def _reduce(rows: Tensor, inside: Tensor, mode: str) -> Tensor:
    """The vectors (N, L, D) that are inside (N, L) of each bag, as one."""
    mask = inside.unsqueeze(-1)
    if mode != "max":
        total = torch.where(mask, rows, 0).sum(-2)
        return total if mode == "sum" else total / mask.sum(-2).clamp(min=1)
    if rows.shape[-2] == 0:
        return rows.sum(-2)
    largest = torch.where(mask, rows, -torch.inf).amax(-2)
    return torch.where(mask.any(-2), largest, 0)


def _wide(name: str, indices: Any) -> Tensor:
    """Indices of a width that torch's kernels take."""
    if not isinstance(indices, Tensor) or indices.dtype not in _INDICES:
        found = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"{name} takes a tensor of integers, found {found}; write x.long()")
    return indices if indices.dtype in (torch.int32, torch.int64) else indices.long()


def _explain_range(name: str, weight: Tensor, indices: Tensor) -> None:
    """Raise an error where an index is outside the table.

    Raises:
        IndexError: it says the range found.
    """
    if indices.is_meta or not indices.numel():
        return
    least, most = int(indices.min()), int(indices.max())
    if least < 0 or most >= weight.shape[0]:
        raise IndexError(
            f"{name} has {weight.shape[0]} vectors, found indices from {least} to {most}"
        ) from None
