"""How Flux, Flax and Keras keep the parameters of our layers: the rules of `convert_layout`.

Sources: Flux.jl 0.16 (src/layers), Flax linen 0.12 (flax/linen), Keras 3 (keras/src/layers), as read and
run; their own names are on the right of each row. The package takes the functions from here, so that they
come with the rules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fluxlike.layers import (
    activations,
    recurrent_layouts,  # noqa: F401 — registers the rules of recurrent layers
)
from fluxlike.layers.attention.multihead import MultiHeadAttention
from fluxlike.layers.basic import Bilinear, Dense, Scale
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.conv import Conv
from fluxlike.layers.conv_transpose import ConvTranspose
from fluxlike.layers.embedding import Embedding, EmbeddingBag
from fluxlike.layers.groupnorm import GroupNorm, InstanceNorm
from fluxlike.layers.layernorm import LayerNorm, RMSNorm
from fluxlike.layers.recurrent.cells import Cell
from fluxlike.placement.foreign.convert import convert_layout
from fluxlike.placement.foreign.flattened import may_meet
from fluxlike.placement.foreign.parameters import parameter_rule
from fluxlike.placement.foreign.parts import Part, Parts, Values, axes, same, spatial
from fluxlike.placement.foreign.state import foreign_state, load_foreign_state

__all__ = ["convert_layout", "foreign_state", "load_foreign_state", "parameter_rule"]

vector = partial(same, rank=1)
BIAS = vector(".bias", "bias")

may_meet(
    flattens=(activations.flatten,),
    harmless=(
        *(getattr(activations, name) for name in activations.__all__),
        *(torch.add, torch.mul, torch.sub, torch.maximum, torch.minimum, torch.cat),
    ),
    features=(Dense, Bilinear, Cell),
    norms=(BatchNorm, LayerNorm, RMSNorm, Scale),
)

# Fully connected: (out, in) in Flux, (in, out) in Flax and Keras.
parameter_rule(Dense, "flux", same(".weight", "weight", rank=2), BIAS)
parameter_rule(Dense, "flax", axes(".weight", "kernel", "IO", "OI"), BIAS)
parameter_rule(Dense, "keras", axes(".weight", "kernel", "IO", "OI"), BIAS, names=("dense",))
parameter_rule(Bilinear, "flux", same(".weight", "weight", rank=3), BIAS)

# Tables: (features, vocabulary) in Flux.
for table in (Embedding, EmbeddingBag):
    parameter_rule(table, "flux", axes(".weight", "weight", "CV", "VC"))
    parameter_rule(table, "flax", same(".weight", "embedding", rank=2), names=("Embed",))
    parameter_rule(table, "keras", same(".weight", "embeddings", rank=2), names=("embedding",))


def _kernel(
    theirs: str, src: str, dst: str, *, flip: bool = False
) -> Callable[[Conv | ConvTranspose], list[Part]]:
    """The kernel of a convolution: S are the axes that it runs along, R the same from last to first."""

    def of(layer: Conv | ConvTranspose) -> list[Part]:
        there, here, along = (spatial(layout, layer) for layout in (src, dst, "S"))
        return [axes(".weight", theirs, there, here, flip=along if flip else "")]

    return of


def _flux_kernel(layer: Conv) -> list[Part]:
    (flipped,) = _kernel("weight", "RIO", "OIS", flip=True)(layer)
    (crosscor,) = _kernel("weight", "RIO", "OIS")(layer)
    return [replace(flipped, crosscor=crosscor)]


def _keras_kernel(layer: Conv) -> list[Part]:
    """A kernel (…, in / groups, out), or of a DepthwiseConv (…, in, multiplier) → channel c·multiplier + m.

    In place both are written as the first; there, only the bias or a multiplier can tell them apart.
    """
    (grouped,) = _kernel("kernel", "SIO", "OIS")(layer)
    (by_channel,) = _kernel("kernel", "SIM", "IMS")(layer)

    def depthwise(x: Tensor) -> Values:
        (y,) = by_channel.read(x)
        return (None if y is None else y.flatten(0, 1).unsqueeze(1),)

    def read(x: Tensor) -> Values:
        alone = layer.groups > 1 and layer.weight.shape[1] == 1 and x.shape[-2] == layer.groups
        return depthwise(x) if alone else grouped.read(x)

    def read_in_place(x: Tensor) -> Values:
        told = x.shape[-1] % layer.groups if layer.bias is None else x.shape[-1] != layer.bias.shape[0]
        alone = layer.groups > 1 and x.shape[-2] == layer.groups and told
        return depthwise(x) if alone else grouped.read(x)

    def write(x: Tensor) -> Values:
        if layer.groups == 1 or x.shape[1] > 1:
            return grouped.write(x)
        return by_channel.write(x.squeeze(1).unflatten(0, (layer.groups, -1)))

    in_place = replace(grouped, read=read_in_place)
    return [replace(grouped, theirs=("kernel|depthwise_kernel",), read=read, write=write, in_place=in_place)]


def _keras_names(layer: Conv) -> tuple[str, ...]:
    n = len(layer.stride)
    depthwise = layer.groups > 1 and layer.weight.shape[1] == 1
    return (f"depthwise_conv{n}d", f"conv{n}d") if depthwise else (f"conv{n}d",)


# Convolutions: Flux reverses all axes and flips the kernel. Flax' transposed one is a correlation with the
# kernel as it is, where torch's is the gradient of one, which flips it; Keras' is the gradient too.
parameter_rule(Conv, "flux", _flux_kernel, BIAS)
parameter_rule(Conv, "flax", _kernel("kernel", "SIO", "OIS"), BIAS)
parameter_rule(Conv, "keras", _keras_kernel, BIAS, names=_keras_names)
parameter_rule(ConvTranspose, "flux", _kernel("weight", "ROI", "IOS", flip=True), BIAS)
parameter_rule(ConvTranspose, "flax", _kernel("kernel", "SIO", "IOS", flip=True), BIAS)
parameter_rule(
    ConvTranspose,
    "keras",
    _kernel("kernel", "SOI", "IOS"),
    BIAS,
    names=lambda layer: (f"conv{len(layer.stride)}d_transpose",),
)

# Normalisation: names alone, but for a scale of several axes.
for norm in (BatchNorm, InstanceNorm):
    parameter_rule(
        norm,
        "flux",
        vector(".weight", "γ"),
        vector(".bias", "β"),
        vector(".running_mean", "μ"),
        vector(".running_var", "σ²"),
    )
parameter_rule(
    BatchNorm,
    "flax",
    vector(".weight", "scale"),
    BIAS,
    vector(".running_mean", "mean", "batch_stats"),
    vector(".running_var", "var", "batch_stats"),
)
parameter_rule(
    BatchNorm,
    "keras",
    vector(".weight", "gamma"),
    vector(".bias", "beta"),
    vector(".running_mean", "moving_mean"),
    vector(".running_var", "moving_variance"),
    names=("batch_normalization",),
)
parameter_rule(GroupNorm, "flux", vector(".weight", "γ"), vector(".bias", "β"))
parameter_rule(GroupNorm, "flax", vector(".weight", "scale"), BIAS)
parameter_rule(
    GroupNorm, "keras", vector(".weight", "gamma"), vector(".bias", "beta"), names=("group_normalization",)
)
parameter_rule(InstanceNorm, "flax", vector(".weight", "scale"), BIAS)


def _reversed(x: Tensor) -> Values:
    return (x.permute(*range(x.ndim)[::-1]),)


def _channels_first(x: Tensor) -> Values:
    return (x.movedim(-1, 0),)


def _channels_last(x: Tensor) -> Values:
    return (x.movedim(0, -1),)


def _scales(read: Callable[..., Values], write: Callable[..., Values], weight: str, bias: str = "") -> Parts:
    """A scale of several axes and what is added to it, which LayerNorm and RMSNorm count."""

    def of(layer: Any) -> list[Part]:
        shape = getattr(layer, "normalized_shape", None)
        names = [(".weight", weight), *([(".bias", bias)] if bias else [])]
        ranks = None if shape is None else (len(shape),)
        return [Part((ours,), (theirs,), read, write, ranks=ranks) for ours, theirs in names]

    return of


parameter_rule(LayerNorm, "flux", _scales(_reversed, _reversed, "diag.scale|scale", "diag.bias|bias"))
parameter_rule(Scale, "flux", _scales(_reversed, _reversed, "scale", "bias"))
parameter_rule(LayerNorm, "flax", _scales(_channels_first, _channels_last, "scale", "bias"))
parameter_rule(
    LayerNorm,
    "keras",
    _scales(_channels_first, _channels_last, "gamma", "beta"),
    names=("layer_normalization",),
)
parameter_rule(RMSNorm, "flax", _scales(_channels_first, _channels_last, "scale"))
parameter_rule(
    RMSNorm, "keras", _scales(_channels_first, _channels_last, "scale"), names=("rms_normalization",)
)


# Attention: Flux has a Dense for each projection; Flax and Keras a kernel (dim, heads, size of a head) for
# queries, keys and values, and (heads, size of a head, dim) for the output.
def _attention(layer: MultiHeadAttention, projections: tuple[str, ...], *, heads_apart: bool) -> list[Part]:
    size = layer.embed_dim // layer.num_heads
    heads = (layer.num_heads, layer.num_kv_heads, layer.num_kv_heads)
    fused = isinstance(layer.in_proj, Dense)
    has_bias = layer.out_proj.bias is not None
    kernel, bias = ("kernel", "bias") if heads_apart else ("weight", "bias")
    inward = [".in_proj"] if fused else [f".in_proj.{name}" for name in ("query", "key", "value")]
    kinds = [".weight", ".bias"] if has_bias else [".weight"]
    ours = tuple(f"{place}{kind}" for place in (*inward, ".out_proj") for kind in kinds)
    theirs = tuple(f"{p}.{kind}" for p in projections for kind in ((kernel, bias) if has_bias else (kernel,)))
    step = len(kinds)

    def read(*xs: Tensor) -> Values:
        weights = [x.flatten(1).mT if heads_apart else x for x in xs[0 : 3 * step : step]]
        biases = [x.flatten() for x in xs[1 : 3 * step : step]] if has_bias else []
        out = xs[3 * step].flatten(0, 1).mT if heads_apart else xs[3 * step]
        if fused:
            weights, biases = [torch.cat(weights)], [torch.cat(biases)] if has_bias else []
        return (*_alternating(weights, biases), out, *xs[3 * step + 1 :])

    def write(*xs: Tensor) -> Values:
        weights, biases = list(xs[:-step:step]), list(xs[1:-step:step]) if has_bias else []
        if fused:
            rows = [h * size for h in heads]
            weights = list(weights[0].split(rows))
            biases = list(biases[0].split(rows)) if has_bias else []
        out = xs[-step]
        if heads_apart:
            weights = [w.mT.unflatten(1, (h, size)) for w, h in zip(weights, heads, strict=True)]
            biases = [b.unflatten(0, (h, size)) for b, h in zip(biases, heads, strict=False)]
            out = out.mT.unflatten(0, (layer.num_heads, size))
        return (*_alternating(weights, biases), out, *xs[len(xs) - step + 1 :])

    ranks = (2, 1) if has_bias else (2,)
    return [Part(ours, theirs, read, write, ranks=ranks * (len(ours) // step))]


def _alternating(weights: list[Tensor], biases: list[Tensor]) -> list[Tensor]:
    return [x for pair in zip(weights, biases, strict=True) for x in pair] if biases else weights


parameter_rule(
    MultiHeadAttention,
    "flux",
    lambda layer: _attention(layer, ("q_proj", "k_proj", "v_proj", "out_proj"), heads_apart=False),
)
parameter_rule(
    MultiHeadAttention,
    "flax",
    lambda layer: _attention(layer, ("query", "key", "value", "out"), heads_apart=True),
    names=("MultiHeadDotProductAttention", "SelfAttention", "MultiHeadAttention"),
)
parameter_rule(
    MultiHeadAttention,
    "keras",
    lambda layer: _attention(layer, ("query", "key", "value", "attention_output"), heads_apart=True),
    names=("multi_head_attention", "grouped_query_attention"),
)
