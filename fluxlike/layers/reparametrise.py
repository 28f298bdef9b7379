"""WeightNorm and SpectralNorm: a layer whose weight is a function of what is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, cast

import optree
import torch
import torch.nn.functional as F
from torch import Tensor

from fluxlike.layers.auto import autosized
from fluxlike.layers.conv_transpose import ConvTranspose
from fluxlike.layers.errors import fail
from fluxlike.layers.printing import settings_text
from fluxlike.random import normal
from fluxlike.scope.assigned import assign, current
from fluxlike.scope.mode import training
from fluxlike.transforms.listening import same_place
from fluxlike.trees.functor import NAMESPACE, functor, spec_of
from fluxlike.trees.paths import descend, lookup

__all__ = ["SpectralNorm", "WeightNorm"]

Entries = tuple[Any, ...]


class _Reparametrised(ABC):
    """A layer that is called with a function of one of its tensors in that tensor's place."""

    layer: Any
    _entries: Entries

    @abstractmethod
    def _weight(self, tensor: Tensor) -> Tensor:
        """What the layer is called with."""

    def folded(self) -> Any:
        """The layer alone, with the weight that it is called with: the same outputs at less cost.

        In test mode; in train mode, each call of `SpectralNorm` goes on with its iteration.

        Example:
            >>> import torch, fluxlike as fl
            >>> layer, x = fl.SpectralNorm(fl.Dense(3, 2)), torch.randn(4, 3)
            >>> torch.equal(layer.folded()(x), layer(x))
            True
        """
        return _with(self.layer, self._entries, self._weight)

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        layer = self.folded()
        try:
            return layer(*inputs, **options)
        except Exception as error:
            fail(".layer", self.layer, inputs, error)


@autosized(layer=None)
@functor(children=("layer", "g"))
class WeightNorm(_Reparametrised):
    """A layer whose weight is trained as magnitude and direction: ``g·v/‖v‖``.

    (Salimans & Kingma 2016, arXiv 1602.07868.) The layer's own tensor is the direction v, so it is there
    once. At first the layer computes what it did before. A direction of zero length gives NaN: an all-zero
    weight has none.

    Args:
        layer: any layer under `functor`.
        name: the path of the tensor in the layer, such as ``"weight"`` or ``"cell.weight_hh"``.
            (default: "weight")
        dim: the axis that keeps magnitudes apart, the outputs of a Dense or Conv (those of a ConvTranspose
            are axis 1); None for one magnitude in all. (default: 0)

    Attributes:
        layer: the layer, whose tensor is v.
        g: ‖v‖ at first, of v's shape with 1 in the place of all axes but `dim`; 0-d for ``dim=None``.

    Raises:
        TypeError: no registered layer, or no tensor of floats at the path.
        KeyError: there is no such path.
        ValueError: `dim` is no axis of the tensor.
        LayerError: from a call: the layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> layer = fl.WeightNorm(fl.Dense(3, 2))
        >>> layer
        WeightNorm(
          layer=Dense(3, 2),  # 8 parameters
          g=float32[2, 1],
        )                     # Total: 3 tensors, 10 parameters, 40 bytes
        >>> torch.allclose(layer.folded().weight, layer.layer.weight)
        True
    """

    def __init__(self, layer: Callable[..., Any], name: str = "weight", dim: int | None = 0) -> None:
        self._entries, v = _tensor("WeightNorm", layer, name)
        self.layer, self.name = layer, name
        self.dim = None if dim is None else _axis("WeightNorm", v, dim)
        self.g = _norm(v.detach(), self.dim)

    def _weight(self, tensor: Tensor) -> Tensor:
        return tensor * (self.g / _norm(tensor, self.dim))

    def extra_repr(self) -> str:
        return settings_text(name=(self.name, "weight"), dim=(self.dim, 0)).removeprefix(", ")


def _norm(v: Tensor, dim: int | None) -> Tensor:
    """‖v‖ over all axes but one, which are kept with length 1."""
    if dim is None:
        return torch.linalg.vector_norm(v)
    others = [i for i in range(v.ndim) if i != dim]
    return torch.linalg.vector_norm(v, dim=others, keepdim=True) if others else v.abs()


@autosized(layer=None)
@functor(children=("layer", "u", "v"), buffers=("u", "v"))
class SpectralNorm(_Reparametrised):
    """A layer whose weight is divided by its largest singular value: ``W/σ(W)``.

    (Miyato et al. 2018, arXiv 1802.05957.) σ is estimated as uᵀWv by power iteration, one of which each
    call in train mode does and assigns. Fifteen are done at first. A weight of zeros, whose σ is
    0, gives NaN.

    Args:
        layer: any layer under `functor`.
        name: the path of the tensor in the layer, such as ``"weight"`` or ``"cell.weight_hh"``.
            (default: "weight")
        n_power_iterations: how many a call. (default: 1)
        eps: the least length that u and v are divided by. (default: 1e-12)
        dim: the axis of the matrix's rows; the others are its columns. (default: None, the outputs: axis 1
            of a ConvTranspose, else 0)

    Attributes:
        layer: the layer, whose tensor is W.
        u: the left singular vector, a buffer. None where W has one axis, whose σ is its length.
        v: the right singular vector, a buffer, or None.

    Raises:
        TypeError: no registered layer, or no tensor of floats at the path.
        KeyError: there is no such path.
        ValueError: `dim` is no axis of the tensor, or no iteration.
        LayerError: from a call: the layer failed.

    Example:
        >>> import torch, fluxlike as fl
        >>> layer = fl.SpectralNorm(fl.Dense(3, 2), n_power_iterations=5)
        >>> bool(torch.linalg.matrix_norm(layer.folded().weight, 2) < 1.01)
        True
    """

    u: Tensor | None
    v: Tensor | None

    def __init__(
        self,
        layer: Callable[..., Any],
        name: str = "weight",
        n_power_iterations: int = 1,
        eps: float = 1e-12,
        dim: int | None = None,
    ) -> None:
        self._entries, weight = _tensor("SpectralNorm", layer, name)
        if n_power_iterations < 1:
            raise ValueError(f"SpectralNorm(n_power_iterations={n_power_iterations}): write 1 or more")
        self.layer, self.name = layer, name
        self.n_power_iterations, self.eps = n_power_iterations, eps
        self.dim = _axis("SpectralNorm", weight, _rows(layer, self._entries) if dim is None else dim)
        self.u = self.v = None
        if weight.ndim > 1:
            matrix = _matrix(weight.detach(), self.dim)
            u, v = (F.normalize(_drawn(n, matrix), dim=0, eps=eps) for n in matrix.shape)
            self.u, self.v = _power_iterations(matrix, u, v, 15, eps)

    def _weight(self, tensor: Tensor) -> Tensor:
        if self.u is None or self.v is None:
            return F.normalize(tensor, dim=0, eps=self.eps)
        matrix = _matrix(tensor, self.dim)
        u, v = current(self.u), current(self.v)
        if training(self):
            u, v = _power_iterations(matrix.detach(), u, v, self.n_power_iterations, self.eps)
            assign(self.u, u)
            assign(self.v, v)
        return tensor / torch.vdot(u, torch.mv(matrix, v))

    def extra_repr(self) -> str:
        return settings_text(
            name=(self.name, "weight"),
            n_power_iterations=(self.n_power_iterations, 1),
            eps=(self.eps, 1e-12),
            dim=(self.dim, _rows(self.layer, self._entries)),
        ).removeprefix(", ")


def _matrix(weight: Tensor, dim: int) -> Tensor:
    return weight.movedim(dim, 0).flatten(1)


def _drawn(n: int, like: Tensor) -> Tensor:
    """n normals of the dtype and on the device of a matrix."""
    return normal((n,), dtype=like.dtype.to_real(), device=like.device).to(like.dtype)


def _power_iterations(matrix: Tensor, u: Tensor, v: Tensor, n: int, eps: float) -> tuple[Tensor, Tensor]:
    for _ in range(n):
        u = F.normalize(torch.mv(matrix, v), dim=0, eps=eps)
        v = F.normalize(torch.mv(matrix.mH, u), dim=0, eps=eps)
    return u, v


def _tensor(norm: str, layer: Any, name: str) -> tuple[Entries, Tensor]:
    """The way to the tensor that is normalised, and the tensor."""
    if isinstance(layer, type) or not callable(layer) or spec_of(type(layer)) is None:
        raise TypeError(
            f"{norm} takes a layer, an object of a class under fluxlike.functor that can be called, found "
            f"{layer.__name__ if isinstance(layer, type) else type(layer).__name__}"
        )
    entries, tensor = lookup(layer, name)
    if not isinstance(tensor, Tensor) or not (tensor.is_floating_point() or tensor.is_complex()):
        found = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else repr(tensor)
        raise TypeError(
            f"{norm}(…, {name!r}) takes the path of a tensor of floats, found {found} there; of "
            f"{type(layer).__name__}"
        )
    return entries, tensor


def _axis(norm: str, weight: Tensor, dim: int) -> int:
    """The axis counted from the front."""
    if not -weight.ndim <= dim < weight.ndim:
        raise ValueError(f"{norm}(dim={dim}): the weight of shape {tuple(weight.shape)} has no such axis")
    return dim % weight.ndim


def _rows(layer: Any, entries: Entries) -> int:
    """The axis of the outputs in the weight that stands at the end of a way."""
    return 1 if isinstance(descend(layer, entries[:-1]), ConvTranspose) else 0


def _with(node: Any, entries: Entries, f: Callable[[Any], Any]) -> Any:
    """A copy with ``f(old)`` at the end of a way; all else is shared."""
    if not entries:
        return f(node)
    children, static, names, rebuild = _taken_apart(node)
    below = [
        _with(child, entries[1:], f) if name == entries[0] else child
        for child, name in zip(children, names, strict=True)
    ]
    return same_place(rebuild(static, below), node)


def _taken_apart(node: Any) -> tuple[list[Any], Any, tuple[Any, ...], Callable[[Any, Any], Any]]:
    return cast(Any, optree.tree_flatten_one_level(node, none_is_leaf=True, namespace=NAMESPACE))
