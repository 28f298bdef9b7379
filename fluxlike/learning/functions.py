"""The functions of a learner's steps: eager or compiled, stopped or not by a loss that is not finite."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from fluxlike.learning.precision import chosen, scaled_train
from fluxlike.learning.ranks import whole
from fluxlike.transforms.jit.function import jit

__all__ = ["functions", "is_finite"]


def functions(learner: Any, guarded: bool) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions of a step of training and of validation, compiled once for learners of one step."""
    made = learner._shared["functions"]
    if guarded not in made:
        train = _train(learner.steps, guarded, learner.jit)
        made[guarded] = jit(train, donate=("model", "state")) if learner.jit else train
    if "evaluate" not in made:
        evaluate = _evaluate(learner.steps)
        made["evaluate"] = jit(evaluate) if learner.jit else evaluate
    return made[guarded], made["evaluate"]


def _train(step: Any, guarded: bool, compiled: bool) -> Callable[..., Any]:
    if step.precision == "fp16":
        return scaled_train(step, guarded=guarded, compiled=compiled)

    def train(model: Any, state: Any, batch: Any) -> Any:
        with nullcontext() if step.has_parts else step.autocast(model):
            return step.train(model, state, batch)

    def train_in_parts(model: Any, state: Any, batch: Any) -> Any:
        out, grads = step.gradients(model, state, batch)
        if guarded and not is_finite(out["loss"]):
            return model, state, out
        return *step.update(model, state, grads, donate=True), out

    def train_if_finite(model: Any, state: Any, batch: Any) -> Any:
        new_model, new_state, out = train(model, state, batch)
        if not compiled:
            return (new_model, new_state, out) if is_finite(out["loss"]) else (model, state, out)
        finite = torch.isfinite(out["loss"]).all()
        return *chosen(finite, (new_model, new_state), (model, state)), out

    if step.has_parts and not compiled:
        return train_in_parts
    return train_if_finite if guarded else train


def _evaluate(step: Any) -> Callable[..., Any]:
    def evaluate(model: Any, state: Any, batch: Any) -> Any:
        with torch.no_grad(), step.autocast(model):
            return step.evaluate(model, state, batch)

    return evaluate


def is_finite(loss: Any) -> bool:
    """Whether a loss is finite, as far as that costs no wait for another device."""
    return (isinstance(loss, Tensor) and not loss.is_cpu) or math.isfinite(whole(loss))
