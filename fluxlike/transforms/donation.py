"""Donation: which memory a step may write over, and what becomes of tensors that gave theirs away."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from fluxlike.placement.mesh import used
from fluxlike.placement.mesh.used import DONATED

__all__ = ["Donated", "consume", "require_donatable", "span"]


class Donated(Tensor):
    """What a donated tensor turns into: any use of it raises."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> NoReturn:
        raise RuntimeError(DONATED)


def consume(tensors: Iterable[Tensor]) -> None:
    """Turn tensors whose memory was given away into ones that can't be used."""
    known = used.mesh()
    device, empty = None, torch.empty(0, dtype=torch.bool)
    for x in tensors:
        if known is not None and known.over(x):
            part = known.local(x)
            known.consumed(x)
            x = part
        if type(x) is Donated:
            continue
        if x.device != device:
            device = x.device
            empty = torch.empty(0, dtype=torch.bool, device=device)
        if x.requires_grad:
            x.requires_grad_(False)
        x.data = empty  # the few functions that get past __torch_function__ find nothing
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
    others = list(others)
    for place, x in donated:
        if type(x) is Donated:
            x.dim()  # raises
        _require_own(place, x)
    by_device: dict[torch.device, list[tuple[int, int, str, bool]]] = {}
    for gives, tensors in ((True, donated), (False, others)):
        for place, x in tensors:
            if x.device.type != "meta":
                by_device.setdefault(x.device, []).append((*span(x), place, gives))
    for spans in by_device.values():
        _require_apart(sorted(spans, key=lambda s: s[:2]))
    for place, x in donated:
        if x._base is not None and sys.getrefcount(x._base) > 2:  # not by this question alone
            raise ValueError(
                f"{place} is a view of a tensor that is still held and would change too, so it can't be "
                "donated; pass fluxlike.tree.clone(model) once before the first update, or leave "
                "donate=True out"
            )


def _require_apart(spans: Sequence[tuple[int, int, str, bool]]) -> None:
    """Refuse a span that is donated and overlaps another; they are sorted."""
    reach, holder = 0, ""  # the memory seen so far that goes furthest
    free, keeper = 0, ""  # the same of donated memory alone
    for start, stop, place, gives in spans:
        clash = holder if gives and start < reach else keeper if start < free else ""
        if clash:
            hint = "pass fluxlike.tree.clone(model)"
            if place.startswith("the state") and clash.startswith("the state"):
                hint = "take one step without donate=True, which parts them"
            raise ValueError(
                f"{place} shares memory with {clash}, so that donation would change both; {hint}, or leave "
                "donate=True out"
            )
        if stop > reach:
            reach, holder = stop, place
        if gives and stop > free:
            free, keeper = stop, place


def _require_own(place: str, x: Tensor) -> None:
    hint = "pass fluxlike.tree.clone(model) once before the first update"
    if x.is_inference() and not torch.is_inference_mode_enabled():
        problem = "was made under torch.inference_mode and is read-only"
    elif x.grad_fn is not None:
        problem, hint = "was computed with a graph, which still needs it", "detach it first"
    elif not x.untyped_storage().resizable() or (x.device.type == "cpu" and x.is_shared()):
        problem = (
            "lies in memory that torch does not own alone (an array of numpy or JAX, a file, shared memory), "
            "which may be read-only"
        )
    elif not x.is_contiguous() and _overlaps_itself(x):
        problem = "is expanded or overlaps itself"
    else:
        return
    raise ValueError(f"{place} {problem}, so it can't be donated; {hint}, or leave donate=True out")


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two entries may stand at one place: an axis that takes a step within the ones before."""
    reach = 0
    for step, n in sorted((step, n) for step, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if step <= reach:
            return True
        reach += step * (n - 1)
    return False


def span(x: Tensor) -> tuple[int, int]:
    """The addresses of the first byte of a tensor, and of the one after its last."""
    start = x.data_ptr()
    if x.is_contiguous():
        return start, start + x.nbytes
    last = sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)) if x.numel() else -1
    return start, start + (last + 1) * x.element_size()
