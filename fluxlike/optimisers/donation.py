"""Donation: which memory a step may write over, and what becomes of tensors that gave theirs away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

__all__ = ["Donated", "consume", "require_donatable", "span"]


class Donated(Tensor):
    """What a donated tensor turns into: any use of it raises."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise RuntimeError(
            "this tensor was donated to fluxlike.update(..., donate=True), which wrote the next one over its "
            "memory; use what update returned, or keep a copy before it: best = fluxlike.tree.clone(model)"
        )


def consume(tensors: Iterable[Tensor]) -> None:
    """Turn tensors whose memory was given away into ones that can't be used."""
    nothing: dict[torch.device, Tensor] = {}
    device, empty = None, torch.empty(0)
    for x in {id(x): x for x in tensors}.values():
        if x.device != device:
            device = x.device
            empty = nothing.setdefault(device, torch.empty(0, device=device))
        x.data = empty  # what gets past __torch_function__ finds nothing
        x.__class__ = Donated


def require_donatable(donated: Sequence[tuple[str, Tensor]], others: Iterable[tuple[str, Tensor]]) -> None:
    """Refuse donated tensors whose memory can't be written over without harm.

    Args:
        donated: the tensors to write over, with their places.
        others: the tensors that must stay as they are, with theirs.

    Raises:
        ValueError: a donated tensor overlaps itself or another, or lies in memory that torch does
            not own; it names the place.
    """
    spans = []
    for place, x in donated:
        if type(x) is Donated:
            x.dim()  # raises
        _require_own(place, x)
        spans.append((*span(x), place, True))
    spans += [(*span(x), place, False) for place, x in others]
    spans.sort(key=lambda span: span[:2])
    reach, holder = 0, ""  # the memory seen so far that goes furthest
    free, keeper = 0, ""  # the same of donated memory alone
    for start, stop, place, gives in spans:
        clash = holder if gives and start < reach else keeper if start < free else ""
        if clash:
            raise ValueError(
                f"{place} shares memory with {clash}, so that donation would change both; pass "
                "fluxlike.tree.clone(model), or leave donate=True out"
            )
        if stop > reach:
            reach, holder = stop, place
        if gives and stop > free:
            free, keeper = stop, place


def _require_own(place: str, x: Tensor) -> None:
    if x.is_inference() and not torch.is_inference_mode_enabled():
        problem = "was made under torch.inference_mode and is read-only"
    elif x.grad_fn is not None:
        problem = "was computed with a graph, which still needs it"
    elif not x.untyped_storage().resizable():
        problem = (
            "lies in memory that torch does not own (a numpy array, a mapped file, shared memory), which may "
            "be read-only"
        )
    elif not x.is_contiguous() and torch._debug_has_internal_overlap(x) != 0:
        problem = "is expanded or overlaps itself"
    else:
        return
    raise ValueError(
        f"{place} {problem}, so it can't be donated; pass fluxlike.tree.clone(model) once before the first "
        "update, or leave donate=True out"
    )


def span(x: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of a tensor, and of the one after its last."""
    start = x.data_ptr()
    if x.is_contiguous():
        return start, start + x.nbytes
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else -1
    return start, start + (last + 1) * x.element_size()
