"""Dense, Scale and Bilinear."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.init import glorot_uniform
from fluxlike.layers.activations import identity
from fluxlike.layers.auto import autosized
from fluxlike.layers.autocast import autocast_dtype
from fluxlike.layers.checks import explain_mixture, refuse_input, require_activation, require_features
from fluxlike.layers.construct import new_weight
from fluxlike.layers.printing import activation_text, settings_text
from fluxlike.trees.functor import functor

__all__ = ["Activation", "Bilinear", "Dense", "Init", "Scale"]

Activation = Callable[[Tensor], Tensor]
Init = Callable[[Sequence[int]], Tensor]


@autosized(in_features=-1)
@functor
class Dense:
    """A fully connected layer: ``activation(x·weightᵀ + bias)``.

    Args:
        in_features: length of the last axis of the input.
        out_features: length of the last axis of the output.
        activation: any callable. (default: the identity)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: `init.glorot_uniform`)

    Attributes:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        activation: the activation.

    Input and output are of shape (…, in_features) and (…, out_features).

    Raises:
        TypeError: an activation that can't be called; from a call, an input that is no tensor.
        ValueError: from a call: a last axis of another length, or another dtype or device than the weight's.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Dense(784, 128, fl.relu)
        Dense(784, 128, relu)  # 100_480 parameters
        >>> fl.Dense(4, 2)(torch.ones(8, 4)).shape
        torch.Size([8, 2])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: Activation = identity,
        *,
        bias: bool = True,
        init: Init = glorot_uniform,
    ) -> None:
        require_activation("Dense", activation)
        self.weight = new_weight("Dense", init, (out_features, in_features))
        self.bias = torch.zeros(out_features) if bias else None
        self.activation = activation

    def __call__(self, x: Tensor) -> Tensor:
        n = self.weight.shape[1]
        if not isinstance(x, Tensor) or x.ndim == 0 or x.shape[-1] != n:
            require_features("Dense", x, -1, n, f"(…, {n})")
        try:
            y = F.linear(x, self.weight, self.bias)
        except RuntimeError as error:
            explain_mixture("Dense", self.weight, x, error)
            raise
        return self.activation(y)

    def extra_repr(self) -> str:
        out, in_ = self.weight.shape
        return f"{in_}, {out}{activation_text(self.activation)}" + settings_text(
            bias=(self.bias is not None, True)
        )


@autosized(size=-1)
@functor(children=("weight", "bias", "activation"))
class Scale:
    """A scale and a shift of each entry: ``activation(weight · x + bias)``.

    Args:
        size: the sizes of the last axes; an axis of size 1 is shared by all entries of the input's. After
            them, as in Flux, an activation.
        activation: any callable. (default: the identity)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: ones)

    Attributes:
        weight: of the shape `size`.
        bias: of the shape `size`, or None.
        activation: the activation.

    Input and output: (…, \\*size).

    Raises:
        ValueError: no size; from a call, other last axes, or another dtype (but under autocast) or device
            than the weight's.

    Example:
        >>> import torch, fluxlike as fl
        >>> fl.Scale(2, fl.relu)(torch.tensor([[1.0, -2.0]]))
        tensor([[1., 0.]])
        >>> fl.Scale(3, 1, 1, bias=False)  # a factor a channel of (N, 3, H, W)
        Scale(3, 1, 1, bias=False)  # 3 parameters
    """

    def __init__(
        self,
        *size: int | Activation,
        activation: Activation = identity,
        bias: bool = True,
        init: Init = torch.ones,
    ) -> None:
        sizes = tuple(n for n in size if isinstance(n, (int, Integral)))
        others = [n for n in size if not isinstance(n, (int, Integral))]
        if not sizes or size[: len(sizes)] != sizes or len(others) > 1:
            raise ValueError(f"Scale{size}: write the sizes of the last axes, then perhaps an activation")
        self.activation = others[0] if others else activation
        require_activation("Scale", self.activation)
        self.weight = new_weight("Scale", init, sizes)
        self.bias = torch.zeros(self.weight.shape) if bias else None

    def __call__(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        n = weight.ndim
        if not isinstance(x, Tensor) or x.ndim < n or not _fits(weight.shape, x.shape[x.ndim - n :]):
            refuse_input("Scale", x, f"(…, {', '.join('any' if n == 1 else str(n) for n in weight.shape)})")
        if x.dtype is not weight.dtype and autocast_dtype(x) is None:
            explain_mixture("Scale", weight, x)
        try:
            y = x * weight if bias is None else torch.addcmul(bias, x, weight)
        except RuntimeError as error:
            explain_mixture("Scale", weight, x, error)
            raise
        return self.activation(y)

    def extra_repr(self) -> str:
        size = ", ".join(map(str, self.weight.shape))
        return f"{size}{activation_text(self.activation)}" + settings_text(bias=(self.bias is not None, True))


def _fits(size: Sequence[int], last: Sequence[int]) -> bool:
    """Whether axes are of the sizes of a Scale, in which 1 stands for any."""
    if last == size:
        return True
    for n, m in zip(size, last, strict=True):  # noqa: SIM110, twice as fast as all(…)
        if n != 1 and n != m:
            return False
    return True


@autosized(in_features=lambda x1, x2=None: tuple(x.shape[-1] for x in _both(x1, x2)))
@functor
class Bilinear:
    """A layer bilinear in two inputs: ``activation(x1ᵀ · weight[k] · x2 + bias[k])`` for each output k.

    Args:
        in_features: the lengths of the last axes of the two inputs, or one number for both.
        out_features: length of the last axis of the output.
        activation: any callable. (default: the identity)
        bias: whether to add a bias, which starts at zero. (default: True)
        init: makes the weight from its shape. (default: `init.glorot_uniform`)

    Attributes:
        weight: (out_features, in1, in2).
        bias: (out_features,) or None.
        activation: the activation.

    Called with two inputs of shapes (…, in1) and (…, in2), with a tuple of the two, or with one input that
    is both. Output: (…, out_features).

    Raises:
        ValueError: a wrong number of lengths; from a call, an input of another shape, dtype or device.

    Example:
        >>> import torch, fluxlike as fl
        >>> layer = fl.Bilinear((3, 4), 2)
        >>> layer
        Bilinear((3, 4), 2)  # 26 parameters
        >>> layer(torch.ones(5, 3), torch.ones(5, 4)).shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        in_features: int | tuple[int, int],
        out_features: int,
        activation: Activation = identity,
        *,
        bias: bool = True,
        init: Init = glorot_uniform,
    ) -> None:
        if isinstance(activation, Integral):  # torch's order
            raise TypeError(
                f"Bilinear({in_features}, {out_features}, {activation}): write "
                f"Bilinear(({in_features}, {out_features}), {activation})"
            )
        require_activation("Bilinear", activation)
        inputs = tuple(in_features) if isinstance(in_features, Sequence) else (in_features, in_features)
        if len(inputs) != 2:
            raise ValueError(f"in_features={in_features!r}: write the lengths of two inputs, or one for both")
        self.weight = new_weight("Bilinear", init, (out_features, *inputs))
        self.bias = torch.zeros(out_features) if bias else None
        self.activation = activation

    def __call__(self, x1: Any, x2: Tensor | None = None) -> Tensor:
        x, y = _both(x1, x2)
        self._check(x, y)
        try:
            rows = F.linear(y, self.weight.flatten(0, 1)).unflatten(-1, self.weight.shape[:2])
            z = torch.matmul(rows, x.unsqueeze(-1)).squeeze(-1)
        except RuntimeError as error:
            explain_mixture("Bilinear", self.weight, x, error)
            explain_mixture("Bilinear", self.weight, y, error)
            raise
        return self.activation(z if self.bias is None else z + self.bias)

    def _check(self, x: Any, y: Any) -> None:
        for one, n in zip((x, y), self.weight.shape[1:], strict=True):
            require_features("Bilinear", one, -1, n, f"(…, {n})")
        if x.shape[:-1] != y.shape[:-1]:
            raise ValueError(
                "Bilinear takes two inputs that are alike but for their last axes, found "
                f"{tuple(x.shape)} and {tuple(y.shape)}"
            )

    def extra_repr(self) -> str:
        out, *inputs = self.weight.shape
        in1, in2 = inputs
        return f"({in1}, {in2}), {out}{activation_text(self.activation)}" + settings_text(
            bias=(self.bias is not None, True)
        )


def _both(x1: Any, x2: Any) -> tuple[Any, Any]:
    """The two inputs, of two, a tuple of two, or one that is both."""
    if x2 is not None:
        return x1, x2
    if not isinstance(x1, tuple):
        return x1, x1
    if len(x1) != 2:
        raise ValueError(f"Bilinear takes two inputs, or a tuple of two, found a tuple of {len(x1)}")
    return x1
