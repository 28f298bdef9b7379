"""`ToDevice`: model, state and batches on one device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from fluxlike.learning.callback import Callback
from fluxlike.placement.device import to_device

__all__ = ["ToDevice"]


@dataclass(frozen=True)
class ToDevice(Callback):
    """Move the model and the state of the optimiser as a fit begins, and every batch before its step.

    It comes before all other callbacks. What is there already is kept; dtypes are. Copies from pinned memory
    don't block; ``DataLoader(…, device=…)`` moves batches ahead of their step besides. The learner that `fit`
    returns is on the device.

    Args:
        device: where to; ``torch.device``, ``"cuda:1"`` or a number.

    Raises:
        RuntimeError: there is no such device.
        TypeError: a mesh.

    Example:
        >>> import torch, fluxlike as fl
        >>> from fluxlike.learning.callbacks.to_device import ToDevice
        >>> data = [(torch.ones(4, 2), torch.zeros(4, 1))]
        >>> options = {"callbacks": [ToDevice("cpu")], "progress": False}
        >>> learner = fl.Learner(fl.Dense(2, 1), data, fl.Adam(), fl.losses.mse, **options)
        >>> fl.get_device(fl.fit(learner, 1).model)
        device(type='cpu')
    """

    device: torch.device | str | int
    writes = ("model", "state", "batch")
    before = (Callback,)

    def __post_init__(self) -> None:
        if hasattr(self.device, "mesh_dim_names"):
            raise TypeError(
                "ToDevice moves to one device, found a mesh; write Learner(fluxlike.to_device(model, mesh, "
                "plan), fluxlike.DataLoader(…, device=mesh), …)"
            )
        torch.device(self.device)

    def fit_begin(self, run: Any) -> None:
        # Together: what they share stays shared.
        run.model, run.state = to_device((run.model, run.state), self.device)

    def step_begin(self, run: Any) -> None:
        run.batch = to_device(run.batch, self.device)
