"""Connectionist temporal classification: a sequence of labels from a longer sequence of scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike._private import functorch
from fluxlike._private.tracing import concrete, readable
from fluxlike.losses.entries import Agg, check_floats, rounded_once
from fluxlike.placement.numbers import INTEGERS
from fluxlike.transforms.control.scan import scan

__all__ = ["ctc"]

Lengths = Tensor | Sequence[int] | None

_NEVER = -1e30  # the logarithm of no probability: finite, so that differences of two are no NaN


def ctc(
    logits: Tensor,
    target: Tensor,
    /,
    *,
    lengths: Lengths = None,
    target_lengths: Lengths = None,
    blank: int = 0,
    zero_infinity: bool = False,
    agg: Agg = torch.mean,
) -> Tensor:
    """Minus the log-probability of a sequence of labels, over all its alignments with the scores.

    (Graves et al. 2006, doi 10.1145/1143844.1143891.) It is ``torch.nn.functional.ctc_loss`` with the
    batch first and the log-softmax inside, which leaves log-probabilities as they are. The mean is over
    sequences; torch's divides each loss by the length of its target before:
    ``agg=lambda losses: (losses / target_lengths).mean()``. Flux's blank is the last class: write
    ``blank=-1`` for it.

    Args:
        logits: scores of shape (N, T, C), unnormalised or log-probabilities.
        target: labels of shape (N, S), integers from 0 to C-1 other than `blank`.
        lengths: how many of the T steps count, (N,). (default: all)
        target_lengths: how many of the S labels count, (N,). (default: all)
        blank: the class that stands for no label. (default: 0)
        zero_infinity: whether sequences too short for their labels cost 0 instead of infinity. Their
            gradient is 0 in any case. (default: False)
        agg: reduces the losses of shape (N,); None keeps them. (default: mean)

    Returns:
        What `agg` returns.

    Raises:
        ValueError: shapes that don't fit; lengths or labels out of range (on the CPU).
        TypeError: `logits` is no floating tensor, or labels or lengths are no integers.

    Example:
        >>> import torch, fluxlike as fl
        >>> even = torch.zeros(1, 3, 2)  # of the 8 paths of 3 steps, 6 read as one label
        >>> fl.losses.ctc(even, torch.tensor([[1]])).exp()
        tensor(1.3333)
    """
    steps, labels, blank = _checked(logits, target, lengths, target_lengths, blank)

    def formula(logits: Tensor) -> Tensor:
        losses = _losses(torch.log_softmax(logits, -1), target.long(), steps, labels, blank)
        return torch.where(losses.isinf(), 0, losses) if zero_infinity else losses

    return rounded_once(agg, formula, logits)


def _losses(logs: Tensor, target: Tensor, steps: Tensor, labels: Tensor, blank: int) -> Tensor:
    plain = concrete() and not functorch.in_forward_mode() and not logs.is_meta
    if not plain or 0 in logs.shape or target.shape[1] == 0:
        return _recursion(logs, target, steps, labels, blank)
    return _Kernel.apply(logs, target, steps, labels, blank)


class _Kernel(torch.autograd.Function):
    """torch's kernel, whose derivative can't be differentiated: where it is to be, it is the recursion's."""

    @staticmethod
    def forward(ctx: Any, logs: Tensor, *rest: Any) -> Tensor:
        target, steps, labels, blank = rest
        ctx.rest = rest
        ctx.save_for_backward(logs)
        with torch.enable_grad():
            ctx.own = logs.detach().clamp_min(_NEVER).requires_grad_(logs.requires_grad)
            ctx.losses = F.ctc_loss(ctx.own.transpose(0, 1), target, steps, labels, blank, "none")
        return _or_infinity(ctx.losses.detach())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        impossible = _or_infinity(ctx.losses.detach()).isinf()[:, None, None]
        if torch.is_grad_enabled():
            (logs,) = ctx.saved_tensors
            (found,) = torch.autograd.grad(_recursion(logs, *ctx.rest), logs, grad, create_graph=True)
        else:
            (found,) = torch.autograd.grad(ctx.losses, ctx.own, grad, retain_graph=True)
        return torch.where(impossible, 0, found), None, None, None, None


def _recursion(logs: Tensor, target: Tensor, steps: Tensor, labels: Tensor, blank: int) -> Tensor:
    """The forward recursion of the paper's section 4.1, in logarithms, over any tensors."""
    path = _with_blanks(target, labels, blank)
    places = path.shape[1]
    repeats = path == F.pad(path, (2, 0), value=blank)[:, :places]
    may_skip = ~repeats & (path != blank)
    emitted = logs.clamp_min(_NEVER).transpose(0, 1)
    emitted = emitted.gather(2, path.expand(emitted.shape[0], *path.shape))
    counts = torch.arange(emitted.shape[0], device=logs.device)[:, None] < steps

    def step(before: Tensor, x: tuple[Tensor, Tensor]) -> tuple[Tensor, None]:
        emission, count = x
        one = F.pad(before, (1, 0), value=_NEVER)[:, :places]
        two = torch.where(may_skip, F.pad(before, (2, 0), value=_NEVER)[:, :places], _NEVER)
        after = torch.logsumexp(torch.stack((before, one, two)), 0) + emission
        return torch.where(count[:, None], after.clamp_min(_NEVER), before), None

    place = torch.arange(places, device=logs.device)
    start = torch.where(place == 0, 0.0, _NEVER).to(logs.dtype).expand(path.shape)
    end, _ = scan(step, start, (emitted, counts))
    last = (place == 2 * labels[:, None]) | (place == 2 * labels[:, None] - 1)
    return _or_infinity(-torch.logsumexp(torch.where(last, end, _NEVER), 1))


def _or_infinity(losses: Tensor) -> Tensor:
    """The losses, infinite where there is no alignment."""
    return torch.where(losses > -_NEVER / 2, torch.inf, losses)


def _with_blanks(target: Tensor, labels: Tensor, blank: int) -> Tensor:
    """The labels with a blank before and after each, (N, 2·S + 1); what is beyond their length is blank."""
    count, size = target.shape
    kept = torch.where(torch.arange(size, device=target.device) < labels[:, None], target, blank)
    blanks = torch.full_like(kept, blank)
    pairs = torch.stack((blanks, kept), 2).reshape(count, 2 * size)
    return F.pad(pairs, (0, 1), value=blank)


def _checked(
    logits: Tensor, target: Tensor, lengths: Lengths, target_lengths: Lengths, blank: int
) -> tuple[Tensor, Tensor, int]:
    """The lengths of scores and of labels, and the blank counted from the front."""
    check_floats("ctc", logits, target)
    if logits.ndim != 3:
        raise ValueError(
            f"ctc takes logits of shape (N, T, C), found {tuple(logits.shape)}; the batch comes first, so "
            "write .transpose(0, 1) for (T, N, C)"
        )
    count, steps, classes = logits.shape
    if target.dtype not in INTEGERS:
        raise TypeError(f"ctc: the target is {target.dtype}; write integer labels of shape (N, S)")
    if target.ndim != 2 or target.shape[0] != count:
        raise ValueError(
            f"ctc: for logits of shape {tuple(logits.shape)} the target is of shape ({count}, S), found "
            f"{tuple(target.shape)}; pad the labels of each sequence, and give target_lengths"
        )
    if not -classes <= blank < classes:
        raise ValueError(f"ctc: blank={blank} is no class; they run from 0 to {classes - 1}")
    blank %= classes
    given = _length("lengths", lengths, logits, count, steps)
    of_target = _length("target_lengths", target_lengths, logits, count, target.shape[1])
    _check_labels(target, of_target, classes, blank)
    return given, of_target, blank


def _length(name: str, given: Lengths, logits: Tensor, count: int, most: int) -> Tensor:
    if given is None:
        return torch.full((count,), most, device=logits.device)
    lengths = given if isinstance(given, Tensor) else torch.tensor(given, device=logits.device)
    if lengths.dtype not in INTEGERS:
        raise TypeError(f"ctc: {name} is {lengths.dtype}; write integers of shape ({count},)")
    if tuple(lengths.shape) != (count,):
        raise ValueError(f"ctc: {name} has the shape {tuple(lengths.shape)}; write ({count},)")
    if readable(lengths) and count and (int(lengths.min()) < 0 or int(lengths.max()) > most):
        raise ValueError(
            f"ctc: {name} runs from 0 to {most} here, found {int(lengths.min())} to {int(lengths.max())}"
        )
    return lengths.to(logits.device, torch.int64)


def _check_labels(target: Tensor, lengths: Tensor, classes: int, blank: int) -> None:
    if not readable(target) or not readable(lengths):
        return
    used = target[torch.arange(target.shape[1]) < lengths[:, None]]
    if used.numel() and (int(used.min()) < 0 or int(used.max()) >= classes):
        raise ValueError(
            f"ctc: labels run from 0 to {classes - 1} for {classes} classes, found {int(used.min())} to "
            f"{int(used.max())}; labels that don't count are left out by target_lengths"
        )
    if bool((used == blank).any()):
        raise ValueError(f"ctc: a label is {blank}, which is the blank; give blank= another class")
