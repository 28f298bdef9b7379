"""A mean over samples that waits for nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["Mean"]

_FOLD = 64  # updates; a stack of them takes as long as one or two additions on a device


class Mean:
    """The mean of values that stand for several samples each: ``Σ n·value / Σ n``.

    An update keeps the value where it is and computes nothing; every 64 of them are added, in float64, to a
    total on their device. So nothing waits for a device until the mean is read.

    Example:
        >>> import torch
        >>> mean = Mean()
        >>> mean.update(torch.tensor(1.0), 30)
        >>> mean.update(torch.tensor(4.0), 10)
        >>> float(mean.compute())
        1.75
    """

    __slots__ = ("_total", "_values", "_weight", "_weights")

    def __init__(self) -> None:
        self._total: Tensor | None = None  # of what is folded
        self._weight: float = 0
        self._values: list[Any] = []
        self._weights: list[float] = []

    @property
    def weight(self) -> float:
        """How many samples the mean is over."""
        return self._weight + sum(self._weights)

    def update(self, value: Tensor | float, n: float = 1, /) -> None:
        """Take in one value.

        Args:
            value: a 0-d tensor, kept until it is added up, so not to be written into; or a number.
            n: how many samples it is the mean of, more than 0. (default: 1)

        Raises:
            ValueError: the value is not 0-d, or it is of no samples.
        """
        if isinstance(value, Tensor):
            if value.ndim:
                raise ValueError(
                    f"a mean takes one number at a time, found a tensor of shape {tuple(value.shape)}; "
                    "write value.mean()"
                )
            if value.requires_grad:
                value = value.detach()
        if not n > 0:
            raise ValueError(f"a value that stands for {n} samples; write how many it is the mean of")
        self._values.append(value)
        self._weights.append(n)
        if len(self._values) == _FOLD:
            self._total, self._weight = self._folded(), self.weight
            self._values, self._weights = [], []

    def compute(self) -> Tensor:
        """The mean so far, 0-d, on the device of the values; NaN if there are none."""
        if self._total is None and not self._values:
            return torch.tensor(torch.nan, dtype=torch.float64)
        return self._folded() / self.weight

    def state(self) -> dict[str, Any]:
        """All of it as tensors and numbers, which later updates don't change."""
        nothing = torch.zeros(0, dtype=torch.float64)
        return {
            "total": nothing if self._total is None else self._total.reshape(1).clone(),
            "weight": self._weight,
            "values": _stacked(self._values) if self._values else nothing,
            "weights": list(self._weights),
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], /) -> Mean:
        """The mean that gave this state: whatever it takes in next, the results are the same to the bit."""
        mean = cls()
        mean._total = state["total"].reshape(()).clone() if len(state["total"]) else None
        mean._weight = state["weight"]
        mean._values, mean._weights = list(state["values"].unbind()), list(state["weights"])
        return mean

    def _folded(self) -> Tensor:
        """The total with the values that wait."""
        if not self._values:
            assert self._total is not None
            return self._total
        values = _stacked(self._values)
        if len(set(self._weights)) == 1:  # batches of one size: nothing is copied to the device
            added = values.sum() * self._weights[0]
        else:
            added = (values * values.new_tensor(self._weights)).sum()
        return added if self._total is None else self._total.to(added.device) + added


def _stacked(values: list[Any]) -> Tensor:
    """Numbers and 0-d tensors as one vector of float64, or of float32 on a device that has no other."""
    last = values[-1]
    device = last.device if isinstance(last, Tensor) else torch.device("cpu")
    wide = torch.float32 if device.type == "mps" else torch.float64
    if isinstance(last, Tensor) and all(
        isinstance(v, Tensor) and v.dtype is last.dtype and v.device == device for v in values
    ):
        return torch.stack(values).to(wide)
    return torch.stack([torch.as_tensor(v, dtype=wide, device=device) for v in values])
