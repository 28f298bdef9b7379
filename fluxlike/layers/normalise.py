"""Normalisation, and Dropout: the layers that train and test differently."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike._private import functorch
from fluxlike.layers.activations import identity
from fluxlike.layers.basic import Activation, activation_text
from fluxlike.layers.errors import require_activation, require_features
from fluxlike.placement.dtype import stays_float32
from fluxlike.scope import draws, example
from fluxlike.scope.assigned import assign, current
from fluxlike.scope.key import active
from fluxlike.scope.mode import training
from fluxlike.trees.functor import functor

__all__ = ["BatchNorm", "Dropout", "LayerNorm"]


@functor(
    children=("weight", "bias", "running_mean", "running_var", "activation"),
    buffers=("running_mean", "running_var"),
)
class BatchNorm:
    """Batch normalisation (Ioffe & Szegedy 2015, arXiv 1502.03167).

    In train mode it normalises each channel by the batch's mean and variance and assigns the
    running statistics, ``running ← (1-momentum)·running + momentum·batch`` with the unbiased
    variance, as torch does; in test mode it normalises by the running statistics.

    Args:
        num_features: the number of channels.
        activation: any callable. (default: the identity)
        eps: added to the variance. (default: 1e-5)
        momentum: how fast the running statistics move. (default: 0.1)
        affine: whether to learn a scale and a shift. (default: True)

    Attributes:
        weight: (num_features,) or None.
        bias: (num_features,) or None.
        running_mean: (num_features,), a buffer.
        running_var: (num_features,), a buffer.
        activation: the activation.

    Input and output: (N, C) or (N, C, …).

    Raises:
        ValueError: from a call: another number of channels, or in train mode a single value a channel.

    Example:
        >>> import torch, fluxlike as fl
        >>> norm = fl.BatchNorm(2)
        >>> with fl.mode("train"):
        ...     norm(torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
        tensor([[-1.0000, -1.0000],
                [ 1.0000,  1.0000]])
    """

    def __init__(
        self,
        num_features: int,
        activation: Activation = identity,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ) -> None:
        require_activation("BatchNorm", activation)
        self.weight = torch.ones(num_features) if affine else None
        self.bias = torch.zeros(num_features) if affine else None
        self.running_mean = torch.zeros(num_features)
        self.running_var = torch.ones(num_features)
        self.activation = activation
        self.eps, self.momentum = eps, momentum

    def __call__(self, x: Tensor) -> Tensor:
        n = self.running_mean.shape[0]
        if not isinstance(x, Tensor) or x.ndim < 2 or x.shape[1] != n:
            require_features("BatchNorm", x, 1, n, f"(N, {n}, …)")
        if x.dtype != self.running_mean.dtype and x.dtype in (torch.float16, torch.bfloat16):
            return self.activation(self._normalise(x.to(self.running_mean.dtype)).to(x.dtype))
        return self.activation(self._normalise(x))

    def _normalise(self, x: Tensor) -> Tensor:
        mean, var = current(self.running_mean), current(self.running_var)
        if not training(self):
            y = F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        elif example.alone():
            raise ValueError(f"BatchNorm is in train mode; {example.NO_BATCH}")
        elif functorch.active():  # torch's kernel writes its statistics, which vmap refuses
            y = F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)
            axes = [i for i in range(x.ndim) if i != 1]
            values = x.detach()
            assign(self.running_mean, torch.lerp(mean, values.mean(axes), self.momentum))
            assign(self.running_var, torch.lerp(var, values.var(axes), self.momentum))
        else:
            mean, var = mean.clone(), var.clone()  # torch's kernel writes to these
            y = F.batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
            assign(self.running_mean, mean)
            assign(self.running_var, var)
        return y

    def extra_repr(self) -> str:
        (channels,) = self.running_mean.shape
        return (
            f"{channels}{activation_text(self.activation)}"
            + (f", eps={self.eps}" if self.eps != 1e-5 else "")
            + (f", momentum={self.momentum}" if self.momentum != 0.1 else "")
            + (", affine=False" if self.weight is None else "")
        )


@functor(children=("weight", "bias", "activation"))
class LayerNorm:
    """Layer normalisation over the last axes (Ba et al. 2016, arXiv 1607.06450).

    Args:
        normalized_shape: the sizes of the last axes, or the size of the last one.
        activation: any callable. (default: the identity)
        eps: added to the variance. (default: 1e-5)
        affine: whether to learn a scale and a shift. (default: True)

    Attributes:
        weight: of that shape, or None.
        bias: of that shape, or None.
        activation: the activation.

    Input and output: (…, \\*normalized_shape).

    Raises:
        ValueError: from a call: other last axes.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.LayerNorm(3)(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[-1.2247,  0.0000,  1.2247]])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        activation: Activation = identity,
        *,
        eps: float = 1e-5,
        affine: bool = True,
    ) -> None:
        shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
        require_activation("LayerNorm", activation)
        self.weight = torch.ones(shape) if affine else None
        self.bias = torch.zeros(shape) if affine else None
        self.activation = activation
        self.eps, self.normalized_shape = eps, shape

    def __call__(self, x: Tensor) -> Tensor:
        shape = self.normalized_shape
        if not isinstance(x, Tensor) or tuple(x.shape[x.ndim - len(shape) :]) != shape:
            found = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"LayerNorm takes the shape (…, {', '.join(map(str, shape))}), found {found}")
        wide = self.weight is not None and x.dtype in (torch.float16, torch.bfloat16)
        y = F.layer_norm(
            x.to(self.weight.dtype) if wide else x,  # type: ignore[union-attr]
            shape,
            self.weight,
            self.bias,
            self.eps,
        )
        return self.activation(y.to(x.dtype))

    def extra_repr(self) -> str:
        shape = self.normalized_shape
        return (
            f"{shape[0] if len(shape) == 1 else shape}{activation_text(self.activation)}"
            + (f", eps={self.eps}" if self.eps != 1e-5 else "")
            + (", affine=False" if self.weight is None else "")
        )


@functor
class Dropout:
    """In train mode, zero each entry with probability p and scale the others by 1/(1-p).

    (Srivastava et al. 2014.) In test mode, nothing. Draws from the key in scope; where there is none,
    from torch's generator, so ``torch.manual_seed`` works.

    Args:
        p: the probability. (default: 0.5)

    Attributes:
        p: the probability.

    Raises:
        ValueError: `p` outside [0, 1].

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Dropout(0.5)(torch.ones(3))
        tensor([1., 1., 1.])
        >>> with fl.mode("train"), fl.seeded(fl.Key(0)):
        ...     fl.Dropout(0.5)(torch.ones(3))
        tensor([0., 2., 2.])
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"Dropout(p={p!r}): write a probability, from 0 to 1")
        self.p = p

    def __call__(self, x: Tensor) -> Tensor:
        if not training(self):
            return x
        scope = active()
        if scope is None:
            return F.dropout(x, self.p, training=True)
        key, number = scope.next()
        return draws.dropout(key.data, number, x, self.p)

    def extra_repr(self) -> str:
        return f"{self.p}"


stays_float32(BatchNorm)
stays_float32(LayerNorm)
