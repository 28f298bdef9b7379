"""Schedules: hyperparameters as functions of the step, which counts from 0.

A schedule is called with a step: a number gives a float, a tensor (any shape) a float64 tensor. Past
its end it holds its last value. Schedules compose, and are trees, so they are saved with a state.
"""

from typing import TYPE_CHECKING

from fluxlike.rooms import room
from fluxlike.schedules.composed import Interpolate, Loop, Sequence, Shifted, Warmup
from fluxlike.schedules.cycles import OneCycle, Sin, Triangle
from fluxlike.schedules.decays import Constant, Cosine, Exp, Inv, Poly, Step
from fluxlike.schedules.schedule import Schedule

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
    __getattr__, __dir__ = room(__name__, __all__)
