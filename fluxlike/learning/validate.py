"""`validate`: the loss and the metrics of a learner, and nothing else."""

from __future__ import annotations

from typing import Any

from fluxlike.learning.callback import innermost
from fluxlike.learning.callbacks.metrics import Metrics
from fluxlike.learning.callbacks.recorder import Recorder
from fluxlike.learning.callbacks.to_device import ToDevice
from fluxlike.learning.fit import fit
from fluxlike.learning.history.history import History
from fluxlike.learning.learner import Learner
from fluxlike.learning.phase import ValidationPhase

__all__ = ["validate"]


def validate(learner: Learner, data: Any = None) -> dict[str, float]:
    """The loss and the metrics of a learner over its validation data, or other data.

    Args:
        learner: the learner, which stays as it is.
        data: batches, as for a `Learner`. (default: its validation data)

    Returns:
        Numbers by name, means over samples.

    Raises:
        ValueError: the learner has no validation data, and none is given.

    Example:
        >>> import torch, fluxlike as fl
        >>> data = [(torch.ones(4, 2), torch.full((4, 1), 2.0))]
        >>> zero = fl.fmap(torch.zeros_like, fl.Dense(2, 1))
        >>> learner = fl.Learner(zero, data, fl.Adam(), fl.losses.mse)
        >>> fl.validate(learner, data)
        {'loss': 4.0}
    """
    if data is None and "validation" not in learner.data:
        raise ValueError("the learner has no validation data; write validate(learner, data)")
    kept = [c for c in learner.callbacks if isinstance(innermost(c), (Metrics, ToDevice))]
    if not any(isinstance(innermost(c), Metrics) for c in kept):
        kept.append(Metrics())
    looked = learner.replace(
        data={"validation": learner.data["validation"] if data is None else data},
        phases=(ValidationPhase(),),
        callbacks=(*kept, Recorder()),
        phase=0, batch=0, memory={}, history=History(), random=None,
    )  # fmt: skip
    row = fit(looked, 1).history.epochs[-1]
    return {name: value for name, value in row.items() if name not in ("epoch", "phase", "seconds")}
