"""Folding: a BatchNorm that is no longer trained, made part of the layer beside it."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from fluxlike.layers.activations import identity
from fluxlike.layers.basic import Dense
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.conv_transpose import ConvTranspose
from fluxlike.scope.mode import mode, training
from fluxlike.transforms.engine.motors import enclosed
from fluxlike.trees.paths import children, replace
from fluxlike.trees.structure import flatten

__all__ = ["fold_batchnorm", "folded"]

Entries = tuple[Any, ...]
LINEAR: tuple[type, ...] = (Conv, ConvTranspose, Dense)


def fold_batchnorm(model: Any, /) -> Any:
    """A model with the statistics and scales of its BatchNorms in the layers beside them, for inference.

    In test mode a BatchNorm is ``x ↦ a·x + b`` for each channel, with ``a = weight/√(running_var + eps)`` and
    ``b = bias - a·running_mean``. Next to a linear layer both are one: behind a `Conv`, `ConvTranspose` or
    `Dense` without activation in a Chain, the layer gets the weight ``a·W``, the bias ``a·c + b`` and the
    BatchNorm's activation; in front of a `Dense`, or of a `Conv` without padding, the weight ``W·a`` and the
    bias ``c + W·b``. The fold is computed in float64, and rounded once.

    A class of one's own is taken to call the Chains that it holds as a whole, and a Dense beside a BatchNorm
    to get (N, C); `inference` folds the others in its graph.

    In its place stands `identity`, so that other places keep their paths. Kept are a BatchNorm between other
    layers (as in DenseNet, whose norms come first), one without statistics or pinned by `trainmode`, and one
    whose tensors, or whose neighbour's, are tied to other places. So are those in wrapped torch modules,
    which `inference` folds.

    Args:
        model: any tree.

    Returns:
        A model of the same outputs in test mode, to rounding; its layers no longer normalise in training.

    Warns:
        UserWarning: there are BatchNorms, and none could be folded.

    Example:
        >>> import torch, fluxlike as fl
        >>> model = fl.Chain(fl.Conv((3, 3), 3, 8, bias=False), fl.BatchNorm(8, fl.relu))
        >>> fl.fold_batchnorm(model)
        Chain(
          Conv((3, 3), 3, 8, relu),  # 224 parameters
          identity,
        )                            # Total: 2 tensors, 224 parameters, 896 bytes

    Source: Jacob et al. 2017, arXiv 1712.05877, section 3.2.
    """
    new = folded(model)
    if new is model:
        norms = sum(type(layer) is BatchNorm for line in _lines(model, ()) for _, layer in line)
        if norms:
            warnings.warn(
                f"fold_batchnorm found {norms} BatchNorms, and could fold none: it folds those right behind "
                "a Conv, ConvTranspose or Dense without activation in a Chain, or right in front of a Dense",
                UserWarning,
                stacklevel=2,
            )
    return new


def folded(model: Any, *, surely: bool = False) -> Any:
    """`fold_batchnorm` without a word where there is nothing to fold: the model itself.

    Args:
        model: any tree.
        surely: whether to fold only what is sure to be called in a row and to normalise what a layer gives:
            no Dense, which works on the last axis, and nothing in classes of the user's own.
    """
    uses = Counter(id(x) for x in flatten(model)[0] if isinstance(x, Tensor))
    new: dict[Entries, Any] = {}
    for line in _lines(model, (), surely=surely):
        new |= _folded(line, uses, LINEAR[:2] if surely else LINEAR)
    return replace(model, new) if new else model


def _lines(node: Any, entries: Entries, *, surely: bool = False) -> Iterator[list[tuple[Entries, Any]]]:
    """Rows of layers of which each gets the output of the one before, through Chains in Chains."""
    row = list(_row(node, entries)) if type(node) is Chain else [(entries, node)]
    yield row
    for place, layer in row:
        ours = type(layer).__module__.partition(".")[0] in ("fluxlike", "builtins")
        if type(layer) is not BatchNorm and (ours or not surely):
            for step, child in children(layer):
                yield from _lines(child, (*place, step.entry), surely=surely)


def _row(chain: Chain, entries: Entries) -> Iterator[tuple[Entries, Any]]:
    for i, layer in enumerate(chain.layers):
        place = (*entries, "layers", i)
        if type(layer) is Chain:
            yield from _row(layer, place)
        else:
            yield place, layer


def _folded(
    line: list[tuple[Entries, Any]], uses: Counter[int], kinds: tuple[type, ...]
) -> dict[Entries, Any]:
    """What stands at some places of a row instead."""
    new: dict[Entries, Any] = {}
    row = [(place, layer) for place, layer in line if layer is not identity]
    i = 0
    while i + 1 < len(row):
        (here, first), (there, second) = row[i], row[i + 1]
        joint = _joint(first, second, uses, kinds)
        if joint is None:
            i += 1
            continue
        kept, gone = (here, there) if type(second) is BatchNorm else (there, here)
        new |= {kept: joint, gone: identity}
        row[i : i + 2] = [(kept, joint)]
        i = max(i - 1, 0)
    return new


def _joint(first: Any, second: Any, uses: Counter[int], kinds: tuple[type, ...]) -> Any:
    """The layer that does what two do, None where there is none."""
    if type(second) is BatchNorm and type(first) in kinds:
        fits = first.activation is identity
        norm, layer = second, first
    elif type(first) is BatchNorm and type(second) in kinds and type(second) is not ConvTranspose:
        fits = first.activation is identity and (type(second) is Dense or not any(map(_any, second.pad)))
        norm, layer = first, second
    else:
        return None
    if not fits or not _may_fold(norm, uses) or not _alone(layer, uses):
        return None
    scale, shift = _as_affine(norm)
    if norm.num_features != _channels(layer, inputs=norm is first):
        return None
    return _before(layer, scale, shift) if norm is first else _after(layer, scale, shift, norm.activation)


def _any(pad: Any) -> bool:
    return any(pad) if isinstance(pad, tuple) else bool(pad)


def _alone(layer: Any, uses: Counter[int]) -> bool:
    return all(uses[id(x)] <= 1 for x in flatten(layer)[0] if isinstance(x, Tensor))


def _may_fold(norm: BatchNorm, uses: Counter[int]) -> bool:
    with mode("test"):
        known = norm.running_mean is not None and norm.running_mean.ndim == 1
        return known and not training(norm) and _alone(norm, uses)


def _channels(layer: Any, *, inputs: bool) -> int:
    """How many channels go into a layer, or come out of it."""
    axis = 1 if inputs != isinstance(layer, ConvTranspose) else 0
    several = getattr(layer, "groups", 1) if axis == 1 else 1
    return layer.weight.shape[axis] * several


def _as_affine(norm: BatchNorm) -> tuple[Tensor, Tensor]:
    """A BatchNorm as a scale and a shift, float64 of shape (C,)."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -scale * norm.running_mean.double()
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _after(layer: Any, scale: Tensor, shift: Tensor, activation: Any) -> Any:
    """A linear layer with a scale and a shift of its outputs."""
    weight = layer.weight.double()
    if isinstance(layer, ConvTranspose):  # (inputs, outputs / groups, …)
        by_group = weight.unflatten(0, (layer.groups, -1)) * scale.view(
            layer.groups, 1, -1, *[1] * (weight.ndim - 2)
        )
        weight = by_group.flatten(0, 1)
    else:
        weight = weight * scale.view(-1, *[1] * (weight.ndim - 1))
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    return _with(layer, weight, bias, activation)


def _before(layer: Any, scale: Tensor, shift: Tensor) -> Any:
    """A linear layer with a scale and a shift of its inputs."""
    weight = layer.weight.double()
    groups, axes = getattr(layer, "groups", 1), [1] * (weight.ndim - 2)
    by_group = weight.unflatten(0, (groups, -1))
    scales, shifts = (t.view(groups, 1, -1, *axes) for t in (scale, shift))
    constant = (by_group * shifts).flatten(2).sum(-1).flatten()
    bias = constant if layer.bias is None else layer.bias.double() + constant
    return _with(layer, (by_group * scales).flatten(0, 1), bias, layer.activation)


def _with(layer: Any, weight: Tensor, bias: Tensor, activation: Any) -> Any:
    """The layer with another weight, bias and activation; None where its dtype can't hold them."""
    dtype = layer.weight.dtype
    weight, bias = weight.to(dtype), bias.to(dtype)
    if not enclosed():
        weight, bias = weight.detach(), bias.detach()
        if not (weight.is_meta or (weight.isfinite().all() and bias.isfinite().all())):
            return None
    new = copy.copy(layer)
    new.weight, new.bias, new.activation = weight, bias, activation
    return new
