"""Mixed precision: losses computed by autocast in 16 bits, and for float16 a scale of the loss."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.optimisers.leaves import norms
from fluxlike.placement.dtype import stays_float32
from fluxlike.trees.fmap import fleaves, fmap
from fluxlike.trees.functor import functor
from fluxlike.trees.structure import flatten, structure_of

__all__ = ["LossScale", "all_finite", "autocast", "chosen", "first_loss_scale", "scaled_train"]

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

GROWTH, BACKOFF, EVERY = 2.0, 0.5, 2000
LEAST = 1e-4


@stays_float32
@functor(buffers=("scale", "steps"))
@dataclass(frozen=True)
class LossScale:
    """The factor of the loss under float16, which keeps small gradients above its smallest number.

    It doubles after 2000 steps in a row whose gradients are finite, and halves at one whose are not, as
    torch.amp.GradScaler does (Micikevicius et al. 2018, arXiv 1710.03740).

    Attributes:
        scale: the factor, a 0-d float32 tensor.
        steps: steps since it changed, a 0-d int32 tensor.
    """

    scale: Tensor
    steps: Tensor

    def scaled(self, loss: Tensor, /) -> Tensor:
        """The loss that is differentiated."""
        return loss * self.scale

    def unscaled(self, grads: Any, /) -> Any:
        """The gradient of the loss itself."""
        inverse = self.scale.double().reciprocal().float()
        return fmap(lambda g: g * inverse.to(g.device), grads)

    def after(self, finite: Tensor, /) -> LossScale:
        """The scale after a step, given whether its gradients were finite, a 0-d bool tensor."""
        scale, steps = self.scale.to(finite.device), self.steps.to(finite.device)
        steps = torch.where(finite, steps + 1, 0)
        due = steps == EVERY
        grown = scale * GROWTH
        kept = torch.where(due & torch.isfinite(grown), grown, scale)
        return LossScale(torch.where(finite, kept, scale * BACKOFF), torch.where(due, 0, steps))

    @property
    def exhausted(self) -> bool:
        """Whether it fell so far that gradients are not finite at any scale."""
        return float(self.scale) < LEAST


def autocast(precision: str | None, model: Any, /) -> AbstractContextManager[Any]:
    """The context in which a loss is computed in a precision, on the device of the model."""
    if precision is None:
        return nullcontext()
    device = next((x.device.type for x in flatten(model)[0] if isinstance(x, Tensor)), "cpu")
    return torch.autocast(device, DTYPES[precision])


def first_loss_scale(precision: str | None, step: Any, model: Any, /) -> LossScale | None:
    """The scale before the first step; None where losses need none.

    Raises:
        ValueError: an unknown precision, or one that the step or the model can't have.
    """
    if precision is not None and precision not in DTYPES:
        raise ValueError(f"precision={precision!r}: write 'bf16', 'fp16' or None")
    if precision != "fp16":
        return None
    if not step.has_parts:
        raise ValueError(
            "precision='fp16' scales the loss between forward and backward, and both lie inside the train of "
            "this step, which is one function of your own; write precision='bf16', or a Step with "
            "loss(model, batch)"
        )
    leaves, treedef = flatten(model)
    for path, x in zip(structure_of(treedef).paths, leaves, strict=True):
        if isinstance(x, Tensor) and x.dtype == torch.float16:
            raise ValueError(
                f"precision='fp16' keeps the parameters in float32, and {path or 'the model'} is float16; "
                "write Learner(fl.f32(model), …)"
            )
    device = next((x.device for x in leaves if isinstance(x, Tensor)), torch.device("cpu"))
    return LossScale(torch.tensor(65536.0, device=device), torch.tensor(0, dtype=torch.int32, device=device))


def all_finite(grads: Any, /) -> Tensor:
    """Whether all gradients of a tree are finite, a 0-d bool tensor."""
    found = fleaves(grads)
    if not found:
        return torch.tensor(True)
    device = found[0].device
    return torch.stack([torch.isfinite(n).to(device) for n in norms(found, float("inf"))]).all()


def scaled_train(step: Any, /, *, guarded: bool, compiled: bool) -> Callable[..., Any]:
    """A step of training under a scale of the loss.

    A step whose gradients are not finite is not taken: parameters, state and buffers stay, and the scale
    falls. Where it is `guarded`, one whose loss is not finite is not taken either, and the scale stays.

    Returns:
        A function ``(model, state, batch, scale) -> (model, state, out, scale)``.
    """

    def train(model: Any, state: Any, batch: Any, scale: LossScale) -> Any:
        out, grads = step.gradients(model, state, batch, loss_scale=scale)
        finite = all_finite(grads)
        if guarded and out["loss"].is_cpu and not torch.isfinite(out["loss"]):
            return model, state, out, scale
        if finite:
            model, state = step.update(model, state, grads, donate=True)
        return model, state, out, scale.after(finite)

    def train_without_branches(model: Any, state: Any, batch: Any, scale: LossScale) -> Any:
        out, grads = step.gradients(model, state, batch, loss_scale=scale)
        finite = all_finite(grads)
        new = (*step.update(model, state, grads), scale.after(finite))
        old = (model, state, scale)
        # A scale that falls is new where the step is not taken, so it is chosen by the loss alone.
        counts = torch.isfinite(out["loss"]) if guarded else None
        taken = finite if counts is None else finite & counts
        model, state = chosen(taken, new[:2], old[:2])
        return model, state, out, new[2] if counts is None else chosen(counts, new[2], old[2])

    return train_without_branches if compiled else train


def chosen(condition: Tensor, new: Any, old: Any, /) -> Any:
    """The tensors of one tree or of another, by a 0-d bool tensor."""

    def choose(a: Tensor, b: Tensor) -> Tensor:
        return a if a is b else torch.where(condition.to(a.device), a, b)

    return fmap(choose, new, old)
