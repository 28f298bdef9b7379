"""Whether a program has tensors over a mesh at all, so that the others don't pay for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor

__all__ = ["DONATED", "Mesh", "mesh", "offer"]


#: What any use of a donated tensor says.
DONATED = (
    "this tensor was donated to fluxlike.update(..., donate=True), or to a function made by "
    "fluxlike.jit(..., donate=...), which wrote the next one over its memory; use what was returned, "
    "or keep a copy before: best = fluxlike.tree.clone(model)"
)


class Mesh(Protocol):
    """What the transforms and the optimisers ask about tensors over a mesh."""

    def over(self, x: Any, /) -> bool:
        """Whether `x` is a tensor over a mesh."""

    def place(self, x: Any, /) -> Any:
        """How a tensor lies over a mesh, to be compared and to be given to `joined`; None for any other."""

    def local(self, x: Any, /) -> Any:
        """The part of a tensor over a mesh that this rank holds; anything else as it is."""

    def joined(self, local: Tensor, place: Any, /) -> Tensor:
        """The tensor over a mesh of which this rank holds a part."""

    def alike(self, x: Any, y: Any, /) -> bool:
        """Whether two tensors are divided in the same way."""

    def together(self, x: Any, y: Any, /) -> bool:
        """Whether two tensors are over one mesh, or both over none."""

    def where(self, x: Any, /) -> str:
        """Where a tensor is, in words: on a device, or over a mesh."""

    def divided(self, x: Tensor, like: Tensor, /) -> Tensor:
        """A tensor, a plain one of which every rank has alike, divided as another is."""

    def consumed(self, x: Any, /) -> None:
        """Turn a tensor over a mesh whose memory was given away into one that can't be used."""

    def whole(self, x: Tensor, /) -> Tensor:
        """A tensor over a mesh as a plain one, whole on each rank; any other as it is."""

    def require_one_mesh(self, differentiated: Sequence[Any], others: Sequence[Any], /) -> None:
        """Refuse arguments of which some are over a mesh and others on one device."""

    def placed_as(self, grads: Sequence[Tensor | None], params: Sequence[Tensor], /) -> list[Tensor | None]:
        """Gradients with the placements of their parameters."""

    def gathering(self, handles: Sequence[Tensor], leaves: Sequence[Any], /) -> AbstractContextManager[None]:
        """What a forward pass runs in.

        Args:
            handles: what it is differentiated with respect to.
            leaves: those and all else that it is called with; what is divided of it travels in groups.
        """

    def explaining(self) -> AbstractContextManager[None]:
        """What a backward pass runs in, so that its errors say what to write instead."""

    def settled(self, x: Tensor, /) -> Tensor:
        """A tensor without a pending sum over the ranks."""


_mesh: Mesh | None = None


def mesh() -> Mesh | None:
    """What knows of tensors over a mesh; None as long as there are none."""
    return _mesh


def offer(knowing: Mesh, /) -> None:
    """Say that there are some."""
    global _mesh
    _mesh = knowing
