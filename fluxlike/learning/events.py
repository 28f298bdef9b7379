"""What happens in a fit, in order, and how a callback ends a step, an epoch or the fit."""

from __future__ import annotations

from enum import Enum
from typing import Any

__all__ = ["CallbackError", "Cancel", "CancelEpoch", "CancelFit", "CancelStep", "Event", "LearningError"]


class Event(Enum):
    """A moment of a fit. Each is the name of the callbacks' method that is called then.

    A fit is ``fit_begin``, its epochs, ``fit_end``. An epoch of a phase is ``epoch_begin``, its steps,
    ``epoch_end``. A step is ``step_begin``, the four moments inside it, ``step_end``; a validation step has
    only the first of the four. ``exception`` comes where an error ends the fit.
    """

    FIT_BEGIN = "fit_begin"
    EPOCH_BEGIN = "epoch_begin"
    STEP_BEGIN = "step_begin"
    LOSS_BEGIN = "loss_begin"
    BACKWARD_BEGIN = "backward_begin"
    BACKWARD_END = "backward_end"
    STEP_END = "step_end"
    EPOCH_END = "epoch_end"
    FIT_END = "fit_end"
    EXCEPTION = "exception"

    @property
    def inside_step(self) -> bool:
        """Whether it lies inside what `jit` compiles as one."""
        return self in (Event.BACKWARD_BEGIN, Event.BACKWARD_END)


class Cancel(Exception):
    """What a callback or a step raises to end something early, and go on from there."""

    rank = 0
    advice = ""

    def allowed_at(self, event: Event, /) -> bool:
        """Whether there is something left to cancel."""
        return True


class CancelStep(Cancel):
    """Leave this step: the model stays as it was, and the next batch is taken.

    Raised by a callback at or before ``backward_end``, or by a step that runs eagerly. There is no
    ``step_end``.

    Example:
        >>> import torch, fluxlike as fl
        >>> class LeaveOutSmall(fl.Callback):
        ...     def step_begin(self, run):
        ...         if run.samples < 4:
        ...             raise fl.CancelStep
        >>> data = fl.DataLoader((torch.ones(6, 2), torch.zeros(6, 1)), batch_size=4)
        >>> options = {"callbacks": [LeaveOutSmall()], "progress": False}
        >>> learner = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options))
        >>> learner.step, len(learner.history.steps)
        (2, 1)
    """

    rank = 1
    advice = "the step is taken; raise it up to backward_end"

    def allowed_at(self, event: Event, /) -> bool:
        return event is Event.STEP_BEGIN or event is Event.LOSS_BEGIN or event.inside_step


class CancelEpoch(Cancel):
    """Leave this epoch of this phase: its ``epoch_end`` comes next."""

    rank = 2
    advice = "no epoch is under way; raise it up to the last step_end"

    def allowed_at(self, event: Event, /) -> bool:
        return event not in (Event.FIT_BEGIN, Event.EPOCH_END, Event.FIT_END)


class CancelFit(Cancel):
    """Leave the fit: ``fit_end`` comes next, and the learner is returned as it stands.

    Args:
        reason: why, for ``learner.stopped``.

    Example:
        >>> import torch, fluxlike as fl
        >>> class StopAt(fl.Callback):
        ...     def step_end(self, run):
        ...         if run.step == 7:
        ...             raise fl.CancelFit("seven steps are enough")
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 5
        >>> options = {"callbacks": [StopAt()], "progress": False}
        >>> learner = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options), 3)
        >>> learner.step, learner.stopped
        (7, 'seven steps are enough')
    """

    rank = 3

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class LearningError(RuntimeError):
    """An error that ends a fit.

    Attributes:
        learner: the learner as it stood after the last whole step: `fit` goes on from it.
    """

    learner: Any = None


class CallbackError(LearningError):
    """An error inside a callback; its cause is what was raised there."""
