"""Functions of a batch as metrics: their means over samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fluxlike import losses
from fluxlike.learning.metrics.host import Scalar, is_scalar
from fluxlike.learning.metrics.mean import Mean
from fluxlike.learning.ranks import whole

__all__ = ["FunctionMetric"]


class FunctionMetric:
    """The mean over samples of ``f(outputs, targets)``.

    Attributes:
        higher_is_better: what the function says by an attribute of this name; False for those of
            `fluxlike.losses`, None where it is not known.

    Args:
        function: from the outputs and targets of a batch to their mean, a 0-d tensor or a number.
        name: the column of the history. (default: the function's own name)

    Raises:
        ValueError: the function has no name of its own.

    Example:
        >>> import torch
        >>> metric = FunctionMetric(torch.nn.functional.l1_loss)
        >>> meter = metric.init()
        >>> meter.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 1.0]), 2)
        >>> {name: float(value) for name, value in meter.compute().items()}
        {'l1_loss': 0.5}
    """

    def __init__(self, function: Callable[[Any, Any], Any], name: str | None = None) -> None:
        self._function = function
        self.name = name_of(function) if name is None else name
        inner = _inside(function)
        is_loss = any(inner is getattr(losses, loss) for loss in losses.__all__)
        self.higher_is_better = False if is_loss else getattr(inner, "higher_is_better", None)

    def __repr__(self) -> str:
        return f"FunctionMetric({self.name})"

    def init(self) -> _FunctionMeter:
        return _FunctionMeter(self._function, self.name, Mean())

    def restore(self, state: Mapping[str, Any], /) -> _FunctionMeter:
        return _FunctionMeter(self._function, self.name, Mean.restore(state))


class _FunctionMeter:
    over_mesh = True

    def __init__(self, function: Callable[[Any, Any], Any], name: str, mean: Mean) -> None:
        self._function, self._name, self._mean = function, name, mean

    def update(self, outputs: Any, targets: Any, n: int, /) -> None:
        with torch.no_grad():
            value = whole(self._function(outputs, targets))
        if not is_scalar(value):
            raise TypeError(_no_scalar(self._name, value))
        self._mean.update(value, n)

    def compute(self) -> dict[str, Scalar]:
        return {self._name: self._mean.compute()} if self._mean.weight else {}

    def state(self) -> dict[str, Any]:
        return self._mean.state()


def name_of(function: Any, /) -> str:
    """What a function is called, or the class of an object that can be called."""
    function = _inside(function)
    name = getattr(function, "__name__", type(function).__name__)
    if name == "<lambda>":
        raise ValueError(
            'a metric that is a lambda has no name; give a dict, metrics={"name": lambda outputs, targets: …}'
        )
    return str(name)


def _inside(function: Any) -> Any:
    """The function of which others were made by `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _no_scalar(name: str, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        found = f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
        write = "return the mean over the batch, one real number: .float().mean()"
    else:
        found, write = f"a {type(value).__name__}", "return one number a batch, and write a metric for each"
    return f"the metric {name!r} returned {found}; {write}"
