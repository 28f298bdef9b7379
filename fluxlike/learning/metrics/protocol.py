"""What a metric is to the loop."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from fluxlike.learning.metrics.host import Scalar

__all__ = ["Meter", "Metric"]


class Meter(Protocol):
    """A metric over the batches of one epoch.

    On the ranks of a mesh each has its own, of the whole outputs and targets. Where these are large, a meter
    with an attribute ``over_mesh = True`` gets them as they are, over the mesh, and gives plain results.
    """

    def update(self, outputs: Any, targets: Any, n: int, /) -> None:
        """Take in one batch of `n` samples."""

    def compute(self) -> dict[str, Scalar]:
        """The results so far by column of the history; none if there was no batch."""

    def state(self) -> dict[str, Any]:
        """All of it, as nested dicts and lists of tensors and plain values."""


@runtime_checkable
class Metric(Protocol):
    """What is measured, which never changes: it starts a `Meter` for every epoch.

    Attributes:
        name: the column of the history; where there are several columns, what they begin with.

    It may have a ``higher_is_better`` too, True or False, or a dict of these by column: which is the best for
    `EarlyStopping`, `Checkpointer` and `load_learner` that are told no mode.

    Example:
        >>> import torch, fluxlike as fl
        >>> class LargestError:
        ...     name = "largest_error"
        ...     def init(self):
        ...         return Largest(0.0)
        ...     def restore(self, state):
        ...         return Largest(state["value"])
        >>> class Largest:
        ...     def __init__(self, value):
        ...         self.value = value
        ...     def update(self, outputs, targets, n):
        ...         self.value = torch.maximum((outputs - targets).abs().max(), torch.as_tensor(self.value))
        ...     def compute(self):
        ...         return {"largest_error": self.value}
        ...     def state(self):
        ...         return {"value": self.value}
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))] * 2
        >>> options = {"metrics": [LargestError()], "progress": False}
        >>> learner = fl.fit(fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options))
        >>> learner.history.epochs.columns
        ('epoch', 'phase', 'loss', 'largest_error', 'seconds')
    """

    name: str

    def init(self) -> Meter:
        """A meter that has seen nothing."""

    def restore(self, state: Mapping[str, Any], /) -> Meter:
        """The meter that gave this state."""
