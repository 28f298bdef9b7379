"""The global random states: what moved them, and how to put them back."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomStates"]


class RandomStates:
    """The states of torch, numpy and Python at the start of a run.

    Attributes:
        operations: what drew without a key, in order, each once.
    """

    def __init__(self) -> None:
        self.operations: list[str] = []
        self._generators = [torch.default_generator]
        if torch.cuda.is_initialized():
            self._generators += torch.cuda.default_generators
        self._start = self.read()
        self._numpy, self._python = _numpy_state(), random.getstate()

    def read(self) -> list[Tensor]:
        """The states of torch's generators."""
        return [g.get_state() for g in self._generators]

    def moved(self, since: list[Tensor]) -> bool:
        """Whether a generator of torch has another state than at an earlier reading."""
        return not all(map(torch.equal, self.read(), since))

    def note(self, operation: str) -> None:
        """An operation drew."""
        if operation not in self.operations:
            self.operations.append(operation)

    def finish(self) -> None:
        """Note what moved a global state unseen."""
        if not self.operations and self.moved(self._start):
            self.note("torch.manual_seed, or something that torch does not show,")
        if not all(map(np.array_equal, _numpy_state(), self._numpy)):
            self.note("numpy.random")
        if random.getstate() != self._python:
            self.note("Python's random")

    def restore(self) -> None:
        """Put the global states back."""
        for g, state in zip(self._generators, self._start, strict=True):
            g.set_state(state)
        np.random.set_state(self._numpy)  # noqa: NPY002  # the global state, which others use
        random.setstate(self._python)


def _numpy_state() -> Any:
    return np.random.get_state()  # noqa: NPY002  # the global state, which others use
