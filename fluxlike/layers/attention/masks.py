"""Which keys a query may attend: masks, lengths and causality as one mask."""

from __future__ import annotations

import torch
from torch import Tensor

from fluxlike.layers.lengths import inside, require_lengths

__all__ = ["both", "combine", "up_to"]


def up_to(queries: int, keys: int, device: torch.device, start: int | Tensor = 0) -> Tensor:
    """The causal mask (L, S): query i stands at position `start` + i and attends keys up to there."""
    positions = torch.arange(queries, device=device) + start
    return torch.arange(keys, device=device) <= positions[:, None]


def combine(name: str, q: Tensor, k: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """A mask of four axes from the user's mask and lengths.

    Args:
        name: the layer, for errors.
        q: queries (N, H, L, D).
        k: keys (N, G, S, D).
        mask: bool or floating, (L, S), (N, L, S) or (N, H, L, S), where an axis may also be 1.
        lengths: (N,) integers: how many keys of each sequence count.

    Raises:
        TypeError: a mask that is neither bool nor floating, or lengths that are no integers.
        ValueError: another shape, or lengths outside 0 to S.
    """
    if mask is not None:
        mask = _four_axes(name, mask, (q.shape[0], q.shape[1], q.shape[2], k.shape[2]))
        mask = mask if mask.dtype == torch.bool else mask.to(q.dtype)
    if lengths is None:
        return mask
    instead = "mask=keys[:, None] for a mask of the keys (N, S)"
    require_lengths(name, lengths, q.shape[0], 0, k.shape[2], instead=instead)
    return both(mask, inside(lengths, k.shape[2], k.device)[:, None, None])


def both(mask: Tensor | None, allowed: Tensor) -> Tensor:
    """A mask that allows what two allow, of which the second is bool."""
    if mask is None:
        return allowed
    return mask & allowed if mask.dtype == torch.bool else mask.masked_fill(~allowed, -torch.inf)


def _four_axes(name: str, mask: Tensor, full: tuple[int, int, int, int]) -> Tensor:
    n, h, queries, keys = full
    if not isinstance(mask, Tensor) or not (mask.dtype == torch.bool or mask.is_floating_point()):
        found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"{name} takes a mask of bool, True where a query may attend, or of floats, added to the scores; "
            f"found {found}; write mask.bool()"
        )
    wide = mask[:, None] if mask.ndim == 3 else mask[None, None] if mask.ndim == 2 else mask
    if wide.ndim != 4 or any(a not in (1, b) for a, b in zip(wide.shape, full, strict=True)):
        raise ValueError(
            f"{name} takes a mask of shape (L, S), (N, L, S) or (N, H, L, S), here {(queries, keys)}, "
            f"{(n, queries, keys)} or {(n, h, queries, keys)}, with 1 for an axis along which it is the "
            f"same; found {tuple(mask.shape)}"
        )
    return wide
