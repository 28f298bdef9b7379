"""A comparison that also says how far the numbers of the two lie apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import Row


@dataclass(frozen=True)
class CheckedRow(Row):
    """A `Row` with a check.

    Attributes:
        difference: the largest difference between the results of the two, over the largest of the peer's.
    """

    difference: float = float("nan")

    def __str__(self) -> str:
        # One with a target ends in two columns more.
        space = "" if self.target is not None else " " * 16
        return f"{super().__str__()}{space}  differ by {self.difference:.1e}"


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference of two arrays or tensors, over the largest number of the second."""
    a, b = _array(ours), _array(theirs)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), np.finfo(np.float64).tiny))


def _array(x: Any) -> np.ndarray:
    x = x.detach().double().numpy() if hasattr(x, "detach") else x
    return np.asarray(x, dtype=np.float64)
