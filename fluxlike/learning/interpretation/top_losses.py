"""The observations of the largest losses, with their inputs, out of batches that are seen once."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.trees.structure import flatten

__all__ = ["KeptInputs", "TopLoss", "losses_of_each"]


@dataclass(frozen=True)
class TopLoss:
    """One observation that the model gets wrong, or right with doubt.

    Attributes:
        loss: its loss.
        index: its place in the data, counted from 0 in the order in which they came.
        true: its class.
        predicted: the class of the highest probability.
        probability: that probability.
        probability_of_true: the probability of its own class.
    """

    loss: float
    index: int
    true: str
    predicted: str
    probability: float
    probability_of_true: float


def losses_of_each(loss: Callable[..., Any], outputs: Any, y: Tensor, /) -> Tensor:
    """The loss of each observation.

    A loss that takes ``agg``, as `fluxlike.losses` do, is called once with ``agg=None``, and what it keeps of
    an observation is averaged; any other is called with each observation as a batch of its own.

    Args:
        loss: a function of outputs and targets.
        outputs: of a model.
        y: the targets, (N, …).

    Returns:
        The losses, of shape (N,).

    Raises:
        ValueError: the loss of one observation is no single number.
    """
    n = y.shape[0]
    if _takes_agg(loss):
        each = loss(outputs, y, agg=None)
        if isinstance(each, Tensor) and each.shape[:1] == (n,):
            return each.reshape(n, -1).mean(1)
    leaves, treedef = flatten(outputs)
    values = []
    for i in range(n):
        one = treedef.unflatten([x[i : i + 1] if isinstance(x, Tensor) else x for x in leaves])
        value = torch.as_tensor(loss(one, y[i : i + 1]))
        if value.numel() != 1:
            raise ValueError(f"the loss of one observation is of the shape {tuple(value.shape)}, no number")
        values.append(value.reshape(()))
    return torch.stack(values) if values else torch.zeros(0)


def _takes_agg(loss: Callable[..., Any]) -> bool:
    try:
        return "agg" in inspect.signature(loss).parameters
    except (TypeError, ValueError):  # of a builtin
        return False


class KeptInputs:
    """The inputs of the largest losses so far, in main memory: never more than so many.

    Attributes:
        inputs: by index, trees like the inputs; arrays as long as the batch lose their first axis.
    """

    def __init__(self, most: int) -> None:
        self.inputs: dict[int, Any] = {}
        self._most = most
        self._losses: dict[int, float] = {}

    def take(self, start: int, losses: Tensor, x: Any) -> None:
        """Look at a batch, whose first observation has the index `start`."""
        if not self._most:
            return
        batch = {start + i: value for i, value in enumerate(losses.tolist())}
        largest = sorted((self._losses | batch).items(), key=rank)[: self._most]
        leaves, treedef = flatten(x)
        kept = {}
        for index, _ in largest:
            if index in batch:
                row = [_row(leaf, index - start, len(batch)) for leaf in leaves]
                kept[index] = treedef.unflatten(row)
            else:
                kept[index] = self.inputs[index]
        self.inputs, self._losses = kept, dict(largest)


def _row(x: Any, i: int, n: int) -> Any:
    """The part of one observation, in memory of its own."""
    return x[i].cpu().clone() if isinstance(x, Tensor) and x.shape[:1] == (n,) else x


def rank(item: tuple[int, float], /) -> tuple[bool, float, int]:
    """The order of the largest losses of indices: NaN first, equal ones as they came."""
    index, loss = item
    return not math.isnan(loss), -loss, index
