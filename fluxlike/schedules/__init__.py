"""Schedules: hyperparameters as functions of the step, which counts from 0.

A schedule is called with a step: a number gives a float, a tensor (any shape) a float64 tensor. Past
its end it holds its last value. Schedules compose, and are trees, so they are saved with a state.
"""

from typing import TYPE_CHECKING, Any

from fluxlike.schedules.composed import Interpolate, Loop, Sequence, Shifted, Warmup
from fluxlike.schedules.cycles import OneCycle, Sin, Triangle
from fluxlike.schedules.decays import Constant, Cosine, Exp, Inv, Poly, Step
from fluxlike.schedules.schedule import Schedule
from fluxlike.words_of_torch import absent

__all__ = [
    "Constant",
    "Cosine",
    "Exp",
    "Interpolate",
    "Inv",
    "Loop",
    "OneCycle",
    "Poly",
    "Schedule",
    "Sequence",
    "Shifted",
    "Sin",
    "Step",
    "Triangle",
    "Warmup",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The error of a name that is not here, which says what to write for those of torch."""
        raise absent(__name__, name, __all__)


def __dir__() -> list[str]:
    return sorted(__all__)
