"""`Step`: how a batch becomes a loss, a gradient and an update, by pure functions."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from fluxlike.learning.precision import LossScale, autocast
from fluxlike.optimisers.update import update
from fluxlike.transforms.gradient import withgradient
from fluxlike.trees.places import Where

__all__ = [
    "FunctionStep",
    "Step",
    "SupervisedStep",
    "as_out",
    "pair",
    "signature_of",
    "takes",
    "what",
    "with_settings",
]

Out = Mapping[str, Any]


class Step:
    """How a batch becomes a loss, a gradient and an update. A subclass writes `loss`, or more.

    The methods are pure functions of trees, so a learner with ``jit=True`` compiles `train` and
    `evaluate` whole. What they return besides the loss is for the metrics, which read ``"outputs"`` and
    ``"targets"``, and for callbacks.

    A `train` of your own runs under autocast whole where the learner has a precision. A `gradients` of your
    own gets ``loss_scale`` under ``precision="fp16"``, and hands it on to ``super().gradients``.

    Attributes:
        precision: that of the learner, ``"bf16"``, ``"fp16"`` or None.
        wrt: places of the model, as for `gradient`: the rest is constant, and its backward is not computed.
            (default: the whole model)

    Example:
        >>> import torch, fluxlike as fl
        >>> class Autoencode(fl.Step):
        ...     def loss(self, model, batch):
        ...         return {"loss": fl.losses.mse(model(batch), batch)}
        >>> learner = fl.Learner(fl.Dense(3, 3), [torch.rand(8, 3)], fl.Adam(), step=Autoencode())
        >>> learner = fl.fit(learner, 2)
        >>> learner.step
        2
    """

    precision: str | None = None
    wrt: Where | tuple[Where, ...] | None = None

    def loss(self, model: Any, batch: Any, /) -> Out:
        """The loss of the model on a batch, 0-d and a mean over it, or a dict with it as ``"loss"``."""
        raise NotImplementedError(f"write {type(self).__name__}.loss(self, model, batch)")

    def autocast(self, model: Any, /) -> AbstractContextManager[Any]:
        """The context of the learner's precision, for a model: `gradients` computes the loss in it."""
        return autocast(self.precision, model)

    def gradients(
        self,
        model: Any,
        state: Any,
        batch: Any,
        /,
        *,
        before_backward: Callable[[Out], None] | None = None,
        loss_scale: LossScale | None = None,
    ) -> tuple[Out, Any]:
        """The dict of `loss`, and the gradient of its loss, a tree like the model."""

        def f(model: Any, batch: Any) -> Any:
            with self.autocast(model):
                out = as_out(self.loss(model, batch))
            if isinstance(out["loss"], Tensor) and not out["loss"].requires_grad:
                raise ValueError(
                    "the loss does not depend on the model by anything that can be differentiated, so "
                    "nothing would be trained; an argmax, a comparison or detach() ends a gradient"
                )
            if before_backward is not None:
                before_backward(out)
            return out if loss_scale is None else (loss_scale.scaled(out["loss"]), out)

        value, grads = withgradient(f, model, batch, wrt=self.wrt)
        return (value, grads) if loss_scale is None else (value[1], loss_scale.unscaled(grads))

    def update(self, model: Any, state: Any, grads: Any, /, *, donate: bool = False) -> tuple[Any, Any]:
        """The new model and the new state of the optimiser."""
        return update(state, model, grads, donate=donate)

    def train(self, model: Any, state: Any, batch: Any) -> tuple[Any, Any, Out]:
        """A whole step of training: the new model, the new state, and the dict of `loss`."""
        out, grads = self.gradients(model, state, batch)
        return *self.update(model, state, grads), out

    def evaluate(self, model: Any, state: Any, batch: Any) -> Out:
        """A step of validation: the dict of `loss`, in test mode."""
        return as_out(self.loss(model, batch))

    @property
    def validates(self) -> bool:
        """Whether it says what a step of validation is."""
        return type(self).evaluate is not Step.evaluate or type(self).loss is not Step.loss

    @property
    def has_parts(self) -> bool:
        """Whether a training step is made of the other methods, so that callbacks may come between."""
        return type(self).train is Step.train


class SupervisedStep(Step):
    """A step on batches ``(x, y)``, with a loss of outputs and targets.

    Args:
        criterion: a loss ``criterion(model(x), y)``, such as ``fl.losses.logitcrossentropy``.
    """

    def __init__(self, criterion: Callable[[Any, Any], Any]) -> None:
        if isinstance(criterion, type):
            raise TypeError(
                f"the loss is the class {criterion.__name__}; give an object: {criterion.__name__}()"
            )
        if not callable(criterion):
            raise TypeError(
                f"the loss is a {type(criterion).__name__}; write a function of outputs and targets"
            )
        if not takes(criterion, None, None):
            raise TypeError(
                f"the loss {signature_of(criterion)} can't be called with outputs and targets, and a learner "
                "calls the model itself: write a function of both, such as fl.losses.mse; a loss of a model "
                "and a batch goes into fl.train(loss, model, data, state), or into a subclass of fl.Step"
            )
        self.criterion = criterion

    def loss(self, model: Any, batch: Any, /) -> Out:
        x, y = pair(batch)
        outputs = model(x)
        return {"loss": self.criterion(outputs, y), "outputs": outputs, "targets": y}


class FunctionStep(Step):
    """A step that is one function ``(model, state, batch) -> (model, state, out)``.

    Args:
        function: the step; `out` is a dict with the loss, or the loss alone.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def train(self, model: Any, state: Any, batch: Any) -> tuple[Any, Any, Out]:
        found = self.function(model, state, batch)
        if not isinstance(found, tuple) or len(found) != 3:
            raise TypeError(
                f"the step {_named(self.function)} returned {what(found)}; return model, state, out, where "
                "out is the loss or a dict with it"
            )
        model, state, out = found
        return model, state, as_out(out)

    @property
    def validates(self) -> bool:
        return False


def as_out(found: Any, /) -> Out:
    """What a step gives, as a dict: a loss alone, or a dict with it.

    Raises:
        ValueError: a dict without a loss.
    """
    if not isinstance(found, Mapping):
        return {"loss": found}
    if "loss" not in found:
        raise ValueError(f"a step gave {what(found)}; its dict needs the entry 'loss'")
    return found


def takes(f: Any, /, *args: Any, **named: Any) -> bool:
    """Whether a function can be called with these arguments, as far as its signature says.

    What a decorator wraps may take others than it does: the signature is that of the decorator.
    """
    try:
        signature = inspect.signature(f, follow_wrapped=False)
    except (TypeError, ValueError):  # a function of C, which does not say
        return True
    try:
        signature.bind(*args, **named)
    except TypeError:
        return False
    return True


def signature_of(f: Any, /) -> str:
    """A function with the arguments it must have, such as ``mse(outputs, targets)``."""
    parameters = inspect.signature(f, follow_wrapped=False).parameters.values()
    names = (p.name for p in parameters if p.default is p.empty)
    return f"{getattr(f, '__name__', type(f).__name__)}({', '.join(names)})"


def with_settings(step: Step, /, **settings: Any) -> Step:
    """A copy of a step with other attributes."""
    new = copy.copy(step)
    for name, value in settings.items():
        object.__setattr__(new, name, value)
    return new


def pair(batch: Any, /) -> tuple[Any, Any]:
    """The inputs and the targets of a batch."""
    if isinstance(batch, (tuple, list)) and len(batch) == 2:
        return batch[0], batch[1]
    raise TypeError(
        f"a loss of outputs and targets needs batches (x, y), found {what(batch)}; write a subclass of "
        "fl.Step, whose loss(model, batch) takes batches as they are"
    )


def what(x: Any, /) -> str:
    """A batch, or what a step gave, in words."""
    kind = type(x).__name__
    if isinstance(x, Mapping):
        return f"a {kind} of {', '.join(map(repr, x))}"
    return f"a {kind} of {len(x)}" if isinstance(x, (tuple, list)) else f"a {kind}"


def _named(f: Any) -> str:
    return getattr(f, "__qualname__", type(f).__name__)
