"""A callback that ends a fit by an error, as a process that dies."""

from __future__ import annotations

import fluxlike as fl

__all__ = ["Kill"]


class Kill(fl.Callback):
    """Raises at the end of a step, when all that write have been called."""

    reads = ("everything",)

    def __init__(self, step):
        self.step = step

    def step_end(self, run):
        if run.step == self.step:
            raise RuntimeError("killed")
