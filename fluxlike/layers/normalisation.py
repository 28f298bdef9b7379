"""What normalisation layers share: how wide they count, and running statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.layers.checks import explain_mixture
from fluxlike.placement.numbers import HALVES
from fluxlike.scope.assigned import assign, current
from fluxlike.scope.mode import training

__all__ = ["EPS", "Normalisation", "RunningNormalisation"]

EPS = 1e-5


class Normalisation(ABC):
    """A layer that normalises, then calls its activation.

    Inputs of 16 bits are normalised in the dtype of the layer's own tensors, in float32 where it has none;
    others have to be of that dtype.
    """

    activation: Callable[[Tensor], Tensor]

    @abstractmethod
    def _normalise(self, x: Tensor) -> Tensor:
        """What the activation is called with."""

    def _run(self, x: Tensor, own: Tensor | None) -> Tensor:
        """The output; `own` is one of the layer's own tensors."""
        given = x.dtype
        wide = x
        if given in HALVES:
            wide = x.to(torch.float32 if own is None else own.dtype)
        elif own is not None and given is not own.dtype:
            explain_mixture(type(self).__name__, own, x)
        try:
            y = self._normalise(wide)
        except RuntimeError as error:
            if own is not None:
                explain_mixture(type(self).__name__, own, wide, error)
            raise
        return self.activation(y if wide is x else y.to(given))


class RunningNormalisation(Normalisation):
    """A normalisation that may keep running statistics.

    Train mode assigns them, test mode normalises by them. The kernel is called as
    ``torch.nn.functional.batch_norm`` is.
    """

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    momentum: float | None
    eps: float
    _kernel: ClassVar[Callable[..., Tensor]]

    @abstractmethod
    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the unbiased variance that the running ones move towards."""

    def _rate(self, like: Tensor) -> Any:
        """How far they move."""
        return self.momentum

    def _normalise(self, x: Tensor) -> Tensor:
        if self.running_mean is None or self.running_var is None:
            return self._by_the_batch(x)
        mean, var = current(self.running_mean), current(self.running_var)
        if not training(self):
            return self._by(x, mean, var, False, 0.0)
        if functorch.active() or self.momentum is None:  # vmap refuses that torch's kernel writes to these
            y = self._by_the_batch(x)
            if x.numel():
                rate = self._rate(mean)
                new_mean, new_var = self._statistics(x.detach())
                mean, var = torch.lerp(mean, new_mean, rate), torch.lerp(var, new_var, rate)
        else:
            dense = torch.contiguous_format  # torch's kernel writes to these
            mean, var = mean.clone(memory_format=dense), var.clone(memory_format=dense)
            y = self._by(x, mean, var, True, self.momentum)
        assign(self.running_mean, mean)
        assign(self.running_var, var)
        return y

    def _by_the_batch(self, x: Tensor) -> Tensor:
        return self._by(x, None, None, True, 0.0)

    def _by(
        self, x: Tensor, mean: Tensor | None, var: Tensor | None, of_batch: bool, momentum: float
    ) -> Tensor:
        weight, bias = self.weight, self.bias
        # torch's kernel on the CPU reads the memory of a view with steps as if there were none
        mean, var, weight, bias = (t if t is None else t.contiguous() for t in (mean, var, weight, bias))
        return self._kernel(x, mean, var, weight, bias, of_batch, momentum, self.eps)
