"""GroupNorm and InstanceNorm: normalisation over the channels of one example."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.activations import identity
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Activation
from fluxlike.layers.checks import refuse_input, require_activation, require_features
from fluxlike.layers.construct import whole_sizes
from fluxlike.layers.normalisation import EPS, Normalisation, RunningNormalisation
from fluxlike.layers.printing import activation_text, settings_text
from fluxlike.placement.dtype import stays_float32
from fluxlike.trees.functor import functor

__all__ = ["GroupNorm", "InstanceNorm"]


@autosized(num_channels=1)
@stays_float32
@functor(children=("weight", "bias", "activation"))
class GroupNorm(Normalisation):
    """Group normalisation: over groups of the channels of each example (Wu & He 2018, arXiv 1803.08494).

    Args:
        num_channels: the number of channels. It comes first, as in Flux.
        num_groups: in how many groups of neighbours they are normalised together.
        activation: any callable. (default: the identity)
        eps: added to the variance. (default: 1e-5)
        affine: whether to learn a scale and a shift for each channel. (default: True)

    Attributes:
        weight: (num_channels,) or None.
        bias: (num_channels,) or None.
        activation: the activation.

    Input and output: (N, C) or (N, C, …).

    Raises:
        TypeError: sizes that are no whole numbers.
        ValueError: groups that do not divide the channels; from a call: another number of channels, a
            single value to normalise by ("Expected more than 1 value per channel", where a batch of one has
            groups of one channel without spatial axes), or another dtype (but for 16 bits) or device than
            the layer's.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.GroupNorm(4, 2)(torch.tensor([[1.0, 3.0, 10.0, 30.0]]))
        tensor([[-1.0000,  1.0000, -1.0000,  1.0000]])
        >>> fl.GroupNorm(8, 32)
        Traceback (most recent call last):
        ValueError: GroupNorm(8, 32): 32 groups do not divide 8 channels; the channels come first: (32, 8)
    """

    def __init__(
        self,
        num_channels: int,
        num_groups: int,
        activation: Activation = identity,
        *,
        eps: float = EPS,
        affine: bool = True,
    ) -> None:
        require_activation("GroupNorm", activation)
        num_channels, num_groups = whole_sizes("GroupNorm", (num_channels, num_groups))
        if num_groups < 1 or num_channels % num_groups:
            swapped = num_channels > 0 and num_groups > 0 and num_groups % num_channels == 0
            raise ValueError(
                f"GroupNorm({num_channels}, {num_groups}): {num_groups} groups do not divide {num_channels} "
                "channels" + (f"; the channels come first: ({num_groups}, {num_channels})" if swapped else "")
            )
        self.weight = torch.ones(num_channels) if affine else None
        self.bias = torch.zeros(num_channels) if affine else None
        self.activation = activation
        self.num_channels, self.num_groups, self.eps = num_channels, num_groups, eps

    def __call__(self, x: Tensor) -> Tensor:
        n = self.num_channels
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] != n:
            require_features("GroupNorm", x, 1, n, f"(N, {n}, …)")
        return self._run(x, self.weight)

    def _normalise(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, {self.num_groups}{activation_text(self.activation)}" + settings_text(
            eps=(self.eps, EPS), affine=(self.weight is not None, True)
        )


def _instance_norm(x: Tensor, mean: Tensor | None, var: Tensor | None, *settings: Any) -> Tensor:
    if x.numel():
        return F.instance_norm(x, mean, var, *settings)
    weight, bias, *_ = settings
    return F.batch_norm(x, None, None, weight, bias, True)  # torch's own kernel makes NaN of its gradient


@autosized(num_features=1)
@stays_float32
@functor(
    children=("weight", "bias", "running_mean", "running_var", "activation"),
    buffers=("running_mean", "running_var"),
)
class InstanceNorm(RunningNormalisation):
    """Instance normalisation: each channel of each example (Ulyanov et al. 2016, arXiv 1607.08022).

    As in torch, it learns and keeps nothing unless told to. With running statistics, train mode assigns
    them as `BatchNorm` does, by the mean over the examples, and test mode normalises by them.

    Args:
        num_features: the number of channels.
        activation: any callable. (default: the identity)
        eps: added to the variance. (default: 1e-5)
        momentum: how fast the running statistics move. (default: 0.1)
        affine: whether to learn a scale and a shift. (default: False)
        track_stats: whether to keep running statistics. (default: False)

    Attributes:
        weight: (num_features,) or None.
        bias: (num_features,) or None.
        running_mean: (num_features,), a buffer, or None.
        running_var: (num_features,), a buffer, or None.
        activation: the activation.

    Input and output: (N, C, …) with at least one spatial axis.

    Raises:
        TypeError: a size that is no whole number.
        ValueError: from a call: another number of channels, no spatial axis, a single value to normalise
            by, or another dtype (but for 16 bits) or device than the layer's.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.InstanceNorm(2)(torch.tensor([[[1.0, 3.0], [10.0, 30.0]]]))
        tensor([[[-1.0000,  1.0000],
                 [-1.0000,  1.0000]]])
    """

    _kernel: ClassVar = staticmethod(_instance_norm)

    def __init__(
        self,
        num_features: int,
        activation: Activation = identity,
        *,
        eps: float = EPS,
        momentum: float = 0.1,
        affine: bool = False,
        track_stats: bool = False,
    ) -> None:
        require_activation("InstanceNorm", activation)
        (num_features,) = whole_sizes("InstanceNorm", (num_features,))
        self.weight = torch.ones(num_features) if affine else None
        self.bias = torch.zeros(num_features) if affine else None
        self.running_mean = torch.zeros(num_features) if track_stats else None
        self.running_var = torch.ones(num_features) if track_stats else None
        self.activation = activation
        self.num_features, self.eps, self.momentum = num_features, eps, momentum

    def __call__(self, x: Tensor) -> Tensor:
        n = self.num_features
        if not isinstance(x, Tensor) or x.ndim < 3 or x.shape[1] != n:
            refuse_input("InstanceNorm", x, f"(N, {n}, …) with at least one spatial axis")
        return self._run(x, self.weight if self.running_mean is None else self.running_mean)

    def _statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        axes = list(range(2, x.ndim))
        return x.mean(axes).mean(0), x.var(axes).mean(0)

    def extra_repr(self) -> str:
        return f"{self.num_features}{activation_text(self.activation)}" + settings_text(
            eps=(self.eps, EPS),
            momentum=(self.momentum, 0.1),
            affine=(self.weight is not None, False),
            track_stats=(self.running_mean is not None, False),
        )
