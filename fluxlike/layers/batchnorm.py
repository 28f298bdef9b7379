"""BatchNorm: normalisation over the examples of a batch."""

from __future__ import annotations

from typing import ClassVar, NoReturn

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.activations import identity
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Activation
from fluxlike.layers.checks import require_activation, require_features
from fluxlike.layers.construct import whole_sizes
from fluxlike.layers.normalisation import EPS, RunningNormalisation
from fluxlike.layers.printing import activation_text, settings_text
from fluxlike.placement.dtype import stays_float32
from fluxlike.scope import example
from fluxlike.scope.assigned import assign, current
from fluxlike.scope.mode import training
from fluxlike.trees.functor import functor

__all__ = ["BatchNorm"]


@autosized(num_features=1)
@stays_float32
@functor(
    children=("weight", "bias", "running_mean", "running_var", "num_batches_tracked", "activation"),
    buffers=("running_mean", "running_var", "num_batches_tracked"),
)
class BatchNorm(RunningNormalisation):
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167).

    In train mode it normalises each channel by the batch's mean and variance and assigns the
    running statistics, ``running ← (1-momentum)·running + momentum·batch`` with the unbiased
    variance, as torch does; in test mode it normalises by the running statistics.

    Args:
        num_features: the number of channels.
        activation: any callable. (default: the identity)
        eps: added to the variance. (default: 1e-5)
        momentum: how fast the running statistics move; None for the mean over all batches so far.
            (default: 0.1)
        affine: whether to learn a scale and a shift. (default: True)
        track_stats: whether to keep running statistics; without them, test mode too normalises by the
            batch. (default: True)

    Attributes:
        weight: (num_features,) or None.
        bias: (num_features,) or None.
        running_mean: (num_features,), a buffer, or None.
        running_var: (num_features,), a buffer, or None.
        num_batches_tracked: with ``momentum=None`` the batches so far, a 0-d int64 buffer, else None.
        activation: the activation.

    Input and output: (N, C) or (N, C, …).

    Raises:
        TypeError: a size that is no whole number.
        ValueError: from a call: another number of channels, in train mode a single value a channel, or
            another dtype (but for 16 bits) or device than the layer's.

    Example:
        >>> import torch, fluxlike as fl
        >>> norm = fl.BatchNorm(2)
        >>> with fl.mode("train"):
        ...     norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        tensor([[-1.0000, -1.0000],
                [ 1.0000,  1.0000]])
    """

    _kernel: ClassVar = staticmethod(F.batch_norm)

    def __init__(
        self,
        num_features: int,
        activation: Activation = identity,
        *,
        eps: float = EPS,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_stats: bool = True,
    ) -> None:
        require_activation("BatchNorm", activation)
        (num_features,) = whole_sizes("BatchNorm", (num_features,))
        self.weight = torch.ones(num_features) if affine else None
        self.bias = torch.zeros(num_features) if affine else None
        self.running_mean = torch.zeros(num_features) if track_stats else None
        self.running_var = torch.ones(num_features) if track_stats else None
        self.num_batches_tracked = torch.tensor(0) if track_stats and momentum is None else None
        self.activation = activation
        self.num_features, self.eps, self.momentum = num_features, eps, momentum

    def __call__(self, x: Tensor) -> Tensor:
        n = self.num_features
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] != n:
            require_features("BatchNorm", x, 1, n, f"(N, {n}, …)")
        return self._run(x, self.weight if self.running_mean is None else self.running_mean)

    def _normalise(self, x: Tensor) -> Tensor:
        if example.alone() and (self.running_mean is None or training(self)):
            self._refuse_one_example()
        return super()._normalise(x)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = [i for i in range(x.ndim) if i != 1]
        return x.mean(axes), x.var(axes)

    def _refuse_one_example(self) -> NoReturn:
        if self.running_mean is None:
            raise ValueError(
                "BatchNorm without running statistics mixes the examples of a batch, which "
                "per_example_gradient takes apart: use GroupNorm, which looks at each example alone"
            )
        raise ValueError(f"BatchNorm is in train mode; {example.NO_BATCH}")

    def _rate(self, like: Tensor) -> float | Tensor:
        if self.momentum is not None or self.num_batches_tracked is None:
            return self.momentum or 0.0
        number = current(self.num_batches_tracked) + 1
        assign(self.num_batches_tracked, number)
        return number.to(like.dtype).reciprocal()

    def extra_repr(self) -> str:
        return f"{self.num_features}{activation_text(self.activation)}" + settings_text(
            eps=(self.eps, EPS),
            momentum=(self.momentum, 0.1),
            affine=(self.weight is not None, True),
            track_stats=(self.running_mean is not None, True),
        )
