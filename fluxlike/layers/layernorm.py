"""LayerNorm and RMSNorm: normalisation over the last axes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.activations import identity
from fluxlike.layers.auto import autosized
from fluxlike.layers.basic import Activation
from fluxlike.layers.checks import require_activation, require_shape
from fluxlike.layers.construct import whole_sizes
from fluxlike.layers.normalisation import EPS, Normalisation
from fluxlike.layers.printing import activation_text, settings_text
from fluxlike.placement.dtype import stays_float32
from fluxlike.trees.functor import functor

__all__ = ["LayerNorm", "RMSNorm"]


@autosized(normalized_shape=-1)
@stays_float32
@functor(children=("weight", "bias", "activation"))
class LayerNorm(Normalisation):
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
        TypeError: sizes that are no whole numbers.
        ValueError: from a call: other last axes, or another dtype (but for 16 bits) or device than the
            layer's.

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
        eps: float = EPS,
        affine: bool = True,
    ) -> None:
        shape = _shape("LayerNorm", normalized_shape)
        require_activation("LayerNorm", activation)
        self.weight = torch.ones(shape) if affine else None
        self.bias = torch.zeros(shape) if affine else None
        self.activation = activation
        self.eps, self.normalized_shape = eps, shape

    def __call__(self, x: Tensor) -> Tensor:
        shape = self.normalized_shape
        if not isinstance(x, Tensor) or x.shape[-len(shape) :] != shape:
            require_shape("LayerNorm", x, shape)
        return self._run(x, self.weight)

    def _normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        return f"{_shape_text(self.normalized_shape)}{activation_text(self.activation)}" + settings_text(
            eps=(self.eps, EPS), affine=(self.weight is not None, True)
        )


@autosized(normalized_shape=-1)
@stays_float32
@functor(children=("weight", "activation"))
class RMSNorm(Normalisation):
    """Division by the root of the mean square over the last axes (Zhang & Sennrich 2019, arXiv 1910.07467).

    Args:
        normalized_shape: the sizes of the last axes, or the size of the last one.
        activation: any callable. (default: the identity)
        eps: added to the mean square. (default: None, the spacing at 1 of the dtype it is computed in,
            which is at least float32)
        affine: whether to learn a scale. (default: True)

    Attributes:
        weight: of that shape, or None.
        activation: the activation.

    Input and output: (…, \\*normalized_shape).

    Raises:
        TypeError: sizes that are no whole numbers.
        ValueError: from a call: other last axes, or another dtype (but for 16 bits) or device than the
            layer's.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.RMSNorm(2)(torch.tensor([[1.0, 7.0]]))
        tensor([[0.2000, 1.4000]])
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        activation: Activation = identity,
        *,
        eps: float | None = None,
        affine: bool = True,
    ) -> None:
        shape = _shape("RMSNorm", normalized_shape)
        require_activation("RMSNorm", activation)
        self.weight = torch.ones(shape) if affine else None
        self.activation = activation
        self.eps, self.normalized_shape = eps, shape

    def __call__(self, x: Tensor) -> Tensor:
        shape = self.normalized_shape
        if not isinstance(x, Tensor) or x.shape[-len(shape) :] != shape:
            require_shape("RMSNorm", x, shape)
        return self._run(x, self.weight)

    def _normalise(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.normalized_shape, self.weight, self.eps)

    def extra_repr(self) -> str:
        return f"{_shape_text(self.normalized_shape)}{activation_text(self.activation)}" + settings_text(
            eps=(self.eps, None), affine=(self.weight is not None, True)
        )


def _shape(name: str, normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    sizes = normalized_shape if isinstance(normalized_shape, Sequence) else (normalized_shape,)
    if not sizes:
        raise ValueError(f"normalized_shape={normalized_shape!r}: write the sizes of the last axes")
    return whole_sizes(name, sizes)


def _shape_text(shape: tuple[int, ...]) -> str:
    return str(shape[0] if len(shape) == 1 else shape)
