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


class CancelStep(Cancel):
    """Leave this step: the model stays as it was, and the next batch is taken.

    Raised by a callback at or before ``backward_end``, or by a step that runs eagerly. There is no
    ``step_end``.
    """

    rank = 1


class CancelEpoch(Cancel):
    """Leave this epoch of this phase: its ``epoch_end`` comes next."""

    rank = 2


class CancelFit(Cancel):
    """Leave the fit: ``fit_end`` comes next, and the learner is returned as it stands.

    Args:
        reason: why, for ``learner.stopped``.
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
