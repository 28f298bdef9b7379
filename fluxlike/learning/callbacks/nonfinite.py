"""`StopOnNonFiniteLoss`: the end of a fit at a loss that is NaN or infinite, and where it began."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.learning.callback import Callback
from fluxlike.learning.callbacks.every import checked_every
from fluxlike.learning.events import LearningError
from fluxlike.learning.ranks import whole
from fluxlike.learning.step import FunctionStep
from fluxlike.scope.mode import mode
from fluxlike.transforms.activations import activations
from fluxlike.trees.functor import functor
from fluxlike.trees.nonfinite import find_nonfinite

__all__ = ["NonFiniteLoss", "StopOnNonFiniteLoss", "first_nonfinite"]


class NonFiniteLoss(LearningError):
    """A loss that is NaN or infinite."""


@dataclass(frozen=True)
class StopOnNonFiniteLoss(Callback):
    """End the fit at a training loss that is NaN or infinite, by an error that names the first layer.

    The step with that loss is not taken: model and state are those before it. On another device than
    the CPU, where a look at each loss would wait for it, the step is taken and the loss looked at now
    and then.

    Args:
        every: after how many steps to look, on another device than the CPU. (default: 50)

    Raises:
        ValueError: `every` is no number of steps.
        NonFiniteLoss: in the fit, the loss is not finite.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Dense(2, 4), lambda x: x / 0, fl.Dense(4, 1))
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> learner = fl.Learner(model, data, fl.Adam(), fl.losses.mse, progress=False)
        >>> try:
        ...     fl.fit(learner)
        ... except fl.callbacks.NonFiniteLoss as error:
        ...     print(str(error).split(": ")[1].split(";")[0])
        the first layer whose output is not finite is .layers[1]
    """

    every: int = 50
    guards = True
    reads = ("model", "batch", "out")

    def __post_init__(self) -> None:
        checked_every("StopOnNonFiniteLoss", self.every)

    def step_end(self, run: Any) -> None:
        loss, scale = run.out.get("loss"), run.loss_scale
        if isinstance(loss, Tensor) and not loss.is_cpu and run.batch_number % self.every:
            return
        if scale is not None and scale.exhausted:
            raise NonFiniteLoss(
                f"the gradients are not finite at any scale of the loss, now {float(scale.scale):.2g}, "
                f"{run.where()}; clip or normalise what is large, or take precision='bf16'"
            )
        if loss is None or math.isfinite(loss) or not run.trains:
            return
        with run.randomness():
            found = first_nonfinite(run.learner.steps, run.model, run.batch)
        hint = "; float16 ends at 65504, precision='bf16' at 3e38" if run.learner.precision == "fp16" else ""
        raise NonFiniteLoss(f"the loss is {float(loss)} {run.where()}: {found}{hint}")


@functor(children=("model",))
class _Whole:
    """A step's loss as one layer above the model."""

    def __init__(self, step: Any, model: Any) -> None:
        self.step, self.model = step, model

    def __call__(self, batch: Any) -> Any:
        with self.step.autocast(self.model):
            return self.step.loss(self.model, batch)["loss"]


def first_nonfinite(step: Any, model: Any, batch: Any, /) -> str:
    """Where a loss that is not finite began: batch, parameters, or the first layer, in words."""
    found = find_nonfinite(whole(batch))
    if found:
        return f"the batch holds NaN or Inf at {_some(found)}; look at the data"
    found = find_nonfinite(whole(model))
    if found:
        return (
            f"NaN or Inf has got into the model at {_some(found)}, in a step before; take a lower learning "
            "rate, or clip by ClipGlobalNorm"
        )
    if isinstance(step, FunctionStep):
        return "a step that is one function does not let its layers be looked at"
    try:
        with torch.no_grad(), mode("train"):
            outputs = whole(activations(_Whole(step, model), batch))
    except Exception as error:
        return f"the layers could not be looked at ({type(error).__name__}: {error})"
    paths = [path for path, output in outputs.items() if find_nonfinite(output)]
    inner = [p for p in paths if not any(q != p and q.startswith(p) for q in paths)]
    if not inner:
        return "every layer is finite when this batch is run again"
    if inner[0] == "":
        return "every layer is finite, so the loss itself makes it; look at its logarithms and divisions"
    path = inner[0].removeprefix(".model")
    return (
        f"the first layer whose output is not finite is {path or 'the model itself'}; if that came by and "
        "by, take a lower learning rate (fl.find_lr), or clip by ClipGlobalNorm in the rule"
    )


def _some(paths: Any) -> str:
    listed = list(paths)
    return ", ".join(p or "its root" for p in listed[:3]) + (
        f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    )
