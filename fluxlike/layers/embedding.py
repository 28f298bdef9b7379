"""Tables of vectors, looked up by index: Embedding and EmbeddingBag."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike._private import functorch
from fluxlike._private.tracing import tracing
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Init
from fluxlike.layers.construct import new_weight
from fluxlike.placement.numbers import INTEGERS
from fluxlike.random import normal
from fluxlike.transforms.engine.motors import derived_again
from fluxlike.trees.found import found
from fluxlike.trees.functor import functor

__all__ = ["Embedding", "EmbeddingBag"]

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
        TypeError: from a call: no tensor of integers.

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
            offsets, weights of another dtype than the vectors or with another mode than "sum", or on the
            CPU offsets that do not begin with 0, fall, or are beyond the indices.
        TypeError: from a call: indices or offsets that are no tensors of integers, weights that are no
            tensor.
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
        try:
            if indices.shape[-1] == 0 or derived_again():
                return self._written_out(wide, starts, per_sample_weights)
            return F.embedding_bag(
                wide, self.weight, starts, mode=self.mode, per_sample_weights=per_sample_weights
            )
        except (RuntimeError, IndexError):
            _explain_range("EmbeddingBag", self.weight, indices)
            raise

    def _written_out(self, indices: Tensor, starts: Tensor | None, weights: Tensor | None) -> Tensor:
        """The same from the vectors themselves."""
        rows = F.embedding(indices, self.weight)
        if weights is not None:
            rows = rows * weights.unsqueeze(-1)
        return _reduced(rows, self.mode) if starts is None else _reduced_by_bag(rows, starts, self.mode)

    def _check(self, indices: Tensor, offsets: Any, weights: Any) -> None:
        if indices.ndim not in (1, 2) or (indices.ndim == 2) != (offsets is None):
            hint = "; write indices.unsqueeze(0) for one bag" if indices.ndim == 1 else ""
            raise ValueError(
                "EmbeddingBag takes indices of shape (N, L), or (L,) with offsets, found "
                f"{tuple(indices.shape)} with{'out' if offsets is None else ''} offsets{hint}"
            )
        if offsets is not None:
            _check_offsets(_wide("EmbeddingBag's offsets", offsets), len(indices))
        if weights is None:
            return
        if not isinstance(weights, Tensor):
            raise TypeError(
                f"EmbeddingBag takes per_sample_weights as a tensor, found {found(weights)}; write "
                "torch.tensor(…)"
            )
        if self.mode != "sum" or weights.shape != indices.shape:
            raise ValueError(
                f"EmbeddingBag takes per_sample_weights of the shape of the indices and mode='sum', found "
                f"{tuple(weights.shape)} for {tuple(indices.shape)} and mode={self.mode!r}"
            )
        if weights.dtype != self.weight.dtype:
            wanted, given = (str(t.dtype).removeprefix("torch.") for t in (self.weight, weights))
            raise ValueError(
                f"EmbeddingBag takes per_sample_weights of {wanted}, as its vectors are, found {given}; "
                f"write per_sample_weights.to(torch.{wanted})"
            )

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"{rows}, {columns}" + ("" if self.mode == "mean" else f", mode={self.mode!r}")


def _reduced(rows: Tensor, mode: str) -> Tensor:
    """The vectors (N, L, D) of bags of one length, as (N, D)."""
    if mode == "sum" or rows.shape[-2] == 0:
        return rows.sum(-2)
    return rows.mean(-2) if mode == "mean" else rows.amax(-2)


def _reduced_by_bag(rows: Tensor, starts: Tensor, mode: str) -> Tensor:
    """The vectors (L, D) of N bags in a row, as (N, D)."""
    if starts.shape[0] == 0:
        return rows[:0]
    begun = rows.new_zeros(rows.shape[0] + 1, dtype=torch.long)
    bags = begun.index_add(0, starts, torch.ones_like(starts, dtype=torch.long))[:-1].cumsum(0) - 1
    none = rows.new_zeros(starts.shape[0], rows.shape[1])
    if mode == "max":
        return none.scatter_reduce(0, bags.unsqueeze(-1).expand_as(rows), rows, "amax", include_self=False)
    total = none.index_add(0, bags, rows)
    if mode == "sum":
        return total
    lengths = torch.diff(starts, append=starts.new_full((1,), rows.shape[0]))
    return total / lengths.clamp(min=1).unsqueeze(-1)


def _check_offsets(offsets: Tensor, length: int) -> None:
    """Refuse bags that do not cut the indices in a row, where that can be read without waiting.

    Raises:
        ValueError: it says what an offset is.
    """
    if offsets.ndim == 0 or offsets.shape[-1] == 0 or offsets.device.type != "cpu" or tracing():
        return
    starts = functorch.numbers(offsets)
    if starts[..., 0].any() or (starts[..., 1:] < starts[..., :-1]).any() or (starts[..., -1] > length).any():
        raise ValueError(
            f"EmbeddingBag takes offsets that begin with 0, never fall, and end at most at {length}, the "
            f"number of indices; found {starts.tolist() if starts.size < 20 else starts}"
        )


def _wide(name: str, indices: Any) -> Tensor:
    """Indices of a width that torch's kernels take."""
    if not isinstance(indices, Tensor) or indices.dtype not in INTEGERS:
        if isinstance(indices, Tensor):
            raise TypeError(f"{name} takes a tensor of integers, found {indices.dtype}; write x.long()")
        found = type(indices).__name__
        raise TypeError(f"{name} takes a tensor of integers, found {found}; write torch.tensor(…)")
    return indices if indices.dtype in (torch.int32, torch.int64) else indices.long()


def _explain_range(name: str, weight: Tensor, indices: Tensor) -> None:
    """Raise an error where an index is outside the table.

    Raises:
        IndexError: it says the range found.
    """
    if indices.device.type != "cpu" or not indices.numel():
        return
    found = functorch.numbers(indices)
    least, most = int(found.min()), int(found.max())
    if least < 0 or most >= weight.shape[0]:
        raise IndexError(
            f"{name} has {weight.shape[0]} vectors, found indices from {least} to {most}"
        ) from None
