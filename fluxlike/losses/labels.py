"""What a target says of classes, and the losses that follow from the logarithm each class costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike._private.tracing import concrete, readable
from fluxlike.losses.entries import Agg, check_floats, rounded_once

__all__ = ["Labels", "class_axis"]

_NO_CLASS = ("out of bounds", "out of range")  # what torch says of a label, in its kernel and under vmap
_NO_LABEL = -(2**62)  # of torch's own -100 none must be passed over silently


class Labels:
    """The targets of one call, indices or probabilities, with their weights.

    Attributes:
        dim: the axis of the classes, counted from the front.

    Raises:
        TypeError: no tensors, or not of real floating numbers.
        ValueError: shapes don't fit, or a setting is out of its range.
    """

    def __init__(
        self,
        name: str,
        scores: Tensor,
        target: Tensor,
        dim: int,
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        smoothing: float = 0.0,
    ) -> None:
        check_floats(name, scores, target)
        self.dim = class_axis(name, scores, dim)
        self._name, self._scores, self._target = name, scores, target
        self._by_index = _are_indices(name, scores, target, self.dim)
        self._weight = None if weight is None else _checked_weight(name, weight, scores.shape[self.dim])
        self._ignored, self._smoothing = ignore_index, smoothing
        if ignore_index is not None and not self._by_index:
            raise ValueError(
                f"{name}: ignore_index={ignore_index} is about class indices, and the target holds "
                "probabilities; give entries that don't count the target 0 for every class"
            )
        if not 0 <= smoothing <= 1:
            raise ValueError(f"{name}: label_smoothing={smoothing}; write a number from 0 to 1")

    def loss(self, logs: Callable[[Tensor], Tensor], agg: Agg) -> Any:
        """What `agg` makes of the entries: minus ``logs(scores)``, of shape (N, C, …), times the target.

        The mean of indices is over the weights of those that count.
        """
        if not self._by_index:
            return rounded_once(
                agg, lambda s, t: self._of_probabilities(logs(s), t), self._scores, self._target
            )
        if agg in (torch.mean, Tensor.mean):
            return rounded_once(None, lambda s: self._mean(logs(s)), self._scores)
        return rounded_once(agg, lambda s: self._of_indices(logs(s)), self._scores)

    def _mean(self, logs: Tensor) -> Tensor:
        if not self._smoothing:
            return self._of_indices(logs, "mean")
        entries = self._of_indices(logs)
        plain = self._weight is None and self._ignored is None
        return entries.mean() if plain else entries.sum() / self._mass(entries.dtype)

    def _mass(self, dtype: torch.dtype) -> Tensor:
        """The weights of all targets that count, added up."""
        kept = torch.ones_like(self._target, dtype=torch.bool)
        target = self._target.long()
        if self._ignored is not None:
            kept = target != self._ignored
            target = torch.where(kept, target, 0)
        each = kept.to(dtype)
        return (each if self._weight is None else each * self._weight.to(dtype)[target]).sum()

    def _of_indices(self, logs: Tensor, reduction: str = "none") -> Tensor:
        logs = logs if self.dim == 1 or logs.ndim == 1 else logs.movedim(self.dim, 1)
        weight = None if self._weight is None else self._weight.to(logs.dtype)
        target, ignored = self._target.long(), _NO_LABEL if self._ignored is None else self._ignored
        try:
            entries = F.nll_loss(logs, target, weight, reduction=reduction, ignore_index=ignored)
        except (IndexError, RuntimeError) as error:
            if not any(words in str(error) for words in _NO_CLASS):
                raise
            raise ValueError(self._out_of_range()) from None
        if not self._smoothing:
            return entries
        classes = 1 if logs.ndim > 1 else 0
        if weight is not None:
            logs = logs * _along(weight, classes, logs.ndim)
        even = -logs.mean(classes).masked_fill(target == ignored, 0)
        return (1 - self._smoothing) * entries + self._smoothing * even

    def _of_probabilities(self, logs: Tensor, target: Tensor) -> Tensor:
        if self._smoothing:
            target = target * (1 - self._smoothing) + self._smoothing / logs.shape[self.dim]
        weight = self._weight
        along = None if weight is None else _along(weight.to(logs.dtype), self.dim, logs.ndim)

        def cost(logs: Tensor) -> Tensor:
            return -(target * (logs if along is None else logs * along)).sum(self.dim)

        if concrete() and logs.device.type == "cpu":  # where to look costs less than to mask
            entries = cost(logs)
            if not math.isnan(entries.detach().sum().item()):
                return entries
        return cost(logs.masked_fill((logs == -torch.inf) & (target == 0), 0))  # 0·log 0 is 0

    def _out_of_range(self) -> str:
        classes = self._scores.shape[self.dim]
        text = f"{self._name}: labels run from 0 to {classes - 1} for {classes} classes"
        if not readable(self._target):
            return f"{text}, found others"
        target = self._target if self._ignored is None else self._target[self._target != self._ignored]
        return f"{text}, found {int(target.min())} to {int(target.max())}"


def class_axis(name: str, scores: Tensor, dim: int, /) -> int:
    """The axis of the classes, counted from the front.

    Raises:
        ValueError: there is no such axis.
    """
    if not -scores.ndim <= dim < scores.ndim:
        raise ValueError(
            f"{name}: the scores have the shape {tuple(scores.shape)}; write (N, C, …) with the classes "
            f"on axis {dim}" + (", or dim=0 for those of a single example" if scores.ndim == 1 else "")
        )
    return dim % scores.ndim


def _are_indices(name: str, scores: Tensor, target: Tensor, dim: int) -> bool:
    """Whether the target holds indices; else it holds probabilities."""
    if target.shape == scores.shape and not target.is_complex():
        return False
    rest = (*scores.shape[:dim], *scores.shape[dim + 1 :])
    whole = not target.is_floating_point() and not target.is_complex() and target.dtype != torch.bool
    if tuple(target.shape) == rest and whole:
        return True
    raise ValueError(
        f"{name}: the scores have the shape {tuple(scores.shape)} with classes on axis {dim}, so the target "
        f"is either integer labels of shape {rest} or probabilities of shape {tuple(scores.shape)}; found "
        f"{target.dtype} of shape {tuple(target.shape)}"
    )


def _checked_weight(name: str, weight: Any, classes: int) -> Tensor:
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        found = weight.dtype if isinstance(weight, Tensor) else f"a {type(weight).__name__}"
        raise TypeError(f"{name}: weight is {found}; write a floating tensor, one number a class")
    if tuple(weight.shape) != (classes,):
        raise ValueError(
            f"{name}: weight has the shape {tuple(weight.shape)} for {classes} classes; write ({classes},)"
        )
    return weight


def _along(weight: Tensor, dim: int, ndim: int) -> Tensor:
    """A vector in a shape that meets the axis `dim` of `ndim` axes."""
    return weight.reshape(-1, *(1,) * (ndim - 1 - dim))
