"""What to write for arguments that classes of torch and Equinox have, functions of JAX, and not ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["OF_ARGUMENTS", "OF_FUNCTIONS", "Advice", "words_for"]

#: What to write, or a function from the argument's value to it. A text may hold {value}, {given} for what
#: else the call has, and {own} for the name of the class.
Advice = str | Callable[[Any], str]


def _an_axis(name: str) -> Advice:
    """The advice for a size that torch repeats for every axis, where ours counts the axes."""

    def say(value: Any) -> str:
        sizes = value if isinstance(value, (tuple, list)) else (value, value)
        return f"write {name}={tuple(sizes)}, with a number for each axis"

    return say


def _pad(value: Any) -> str:
    if isinstance(value, str):
        return "write pad=fluxlike.SamePad()" if value == "same" else "write pad=0"
    return f"write pad={value!r}"


def _nonlinearity(value: Any) -> str:
    return f"write activation=fluxlike.{value}"


_TENSORS: dict[str, Advice] = {
    "device": "leave it out, and write fluxlike.to_device(layer, device)",
    "dtype": "leave it out, and write fluxlike.f16(layer), or bf16, f32 or f64",
}
_AFFINE: dict[str, Advice] = {
    **_TENSORS,
    "elementwise_affine": "write affine={value}",
    "bias": "leave it out: affine= is for the weight and the bias together",
    "track_running_stats": "write track_stats={value}",
}
_TABLE: dict[str, Advice] = {
    **_TENSORS,
    "max_norm": "leave it out: a call never changes the table",
    "norm_type": "leave it out: a call never changes the table",
    "scale_grad_by_freq": "leave it out: each index counts as often as it is there",
    "sparse": "leave it out: gradients are dense",
    "_weight": "write init=lambda shape: weight",
    "_freeze": "leave it out, and write state = fluxlike.freeze(state, where)",
}
_BATCH_FIRST: Advice = "leave it out: the batch is first, as in (N, L, C)"
_RECURRENT: dict[str, Advice] = {
    **_TENSORS,
    "batch_first": _BATCH_FIRST,
    "nonlinearity": _nonlinearity,
    "proj_size": "leave it out: the state has hidden_size numbers",
}
_WINDOW: dict[str, Advice] = {"kernel_size": _an_axis("window"), "padding": _pad}
_OUT_SIZE: dict[str, Advice] = {"output_size": _an_axis("out_size")}
_PLACES: Advice = "leave it out, and where the places are wanted call torch.nn.functional with it"
_IN_PLACE: dict[str, Advice] = {"inplace": "leave it out: a layer never changes its input"}
_PARAMETRISED: dict[str, Advice] = {"module": "write layer=, or the layer first"}
_DECAYED = "write fluxlike.OptimiserChain(fluxlike.WeightDecay({value}), fluxlike.{own}({given}))"

#: By the name of a class of ours, and for the classes derived from it.
OF_ARGUMENTS: dict[str, dict[str, Advice]] = {
    "object": {"key": "leave it out, and build under `with fluxlike.seeded(key):`"},
    "Dense": _TENSORS,
    "Bilinear": {
        **_TENSORS,
        "in1_features": "write in_features=(in1_features, in2_features)",
        "in2_features": "write in_features=(in1_features, in2_features)",
    },
    "Embedding": {
        **_TABLE,
        "padding_idx": "leave it out, and write layer(i) * (i != padding_idx).unsqueeze(-1) for zeros there",
    },
    "EmbeddingBag": {
        **_TABLE,
        "include_last_offset": "leave it out, and call it with offsets[:-1]",
        "padding_idx": "leave it out, and call it with per_sample_weights that are 0 there, and mode='sum'",
    },
    "Conv": {**_TENSORS, "padding": _pad},
    "ConvTranspose": {
        **_TENSORS,
        "padding": _pad,
        "output_padding": "write outpad={value}",
        "padding_mode": "leave it out: it is 'zeros', as torch's has to be",
    },
    "MaxPool": {**_WINDOW, "return_indices": _PLACES},
    "MeanPool": {
        **_WINDOW,
        "divisor_override": "leave it out, and multiply: the sum is divided by the size of the window",
    },
    "LPPool": {**_WINDOW, "norm_type": "write p={value}"},
    "AdaptiveMeanPool": _OUT_SIZE,
    "AdaptiveMaxPool": {**_OUT_SIZE, "return_indices": _PLACES},
    "Upsample": {
        "scale_factor": "write scale={value}",
        "recompute_scale_factor": "leave it out, and write size= for sizes that are to be met",
    },
    "PixelShuffle": {"upscale_factor": "write r={value}"},
    "PixelUnshuffle": {"downscale_factor": "write r={value}"},
    "BatchNorm": _AFFINE,
    "InstanceNorm": _AFFINE,
    "LayerNorm": _AFFINE,
    "GroupNorm": _AFFINE,
    "RMSNorm": _AFFINE,
    "Dropout": _IN_PLACE,
    "AlphaDropout": _IN_PLACE,
    "DropPath": {"mode": "leave it out: each observation is dropped by itself, as with mode='row'"},
    "PReLU": _TENSORS,
    "RNN": _RECURRENT,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "RNNCell": _RECURRENT,
    "LSTMCell": _RECURRENT,
    "GRUCell": _RECURRENT,
    "MultiHeadAttention": {
        **_TENSORS,
        "batch_first": _BATCH_FIRST,
        "add_bias_kv": "leave it out: keys and values are those of the inputs alone",
        "add_zero_attn": "leave it out: keys and values are those of the inputs alone",
    },
    "TransformerBlock": {
        **_TENSORS,
        "d_model": "write dim={value}",
        "nhead": "write num_heads={value}",
        "dim_feedforward": "write hidden={value}",
        "norm_first": "write prenorm={value}",
        "layer_norm_eps": "write norm=lambda dim: fluxlike.LayerNorm(dim, eps={value})",
        "batch_first": _BATCH_FIRST,
    },
    "WeightNorm": _PARAMETRISED,
    "SpectralNorm": _PARAMETRISED,
    "BatchRule": {
        "params": "a rule knows no parameters: state = fluxlike.setup(fluxlike.{own}({given}), model)",
        "foreach": "leave it out: fluxlike.update goes over all parameters at once",
        "fused": "leave it out: fluxlike.update(…, donate=True) takes torch's fused kernels",
        "maximize": "leave it out; maximize=True is the gradient of minus the loss",
        "capturable": "leave it out: what is counted is in tensors",
        "differentiable": "leave it out: fluxlike.update is differentiable",
        "key": "leave it out: a rule draws nothing",
    },
    "Descent": {
        "momentum": "write fluxlike.Momentum(lr, momentum={value})",
        "nesterov": "leave it out; nesterov=True is fluxlike.Nesterov(lr, momentum)",
        "dampening": "leave it out: there is no velocity",
        "weight_decay": _DECAYED,
    },
    "Momentum": {
        "nesterov": "leave it out; nesterov=True is fluxlike.Nesterov({given})",
        "dampening": "leave it out: the velocity takes the gradient whole",
        "weight_decay": _DECAYED,
    },
    "Adam": {
        "amsgrad": "leave it out; amsgrad=True is fluxlike.AMSGrad({given})",
        "decoupled_weight_decay": "leave it out; with True it is fluxlike.AdamW(lr, weight_decay=…)",
    },
    "AMSGrad": {"amsgrad": "leave it out: AMSGrad is Adam with it"},
    "AdamW": {
        "amsgrad": "leave it out; amsgrad=True is fluxlike.AMSGrad(lr, weight_decay=…, "
        "decoupled_weight_decay=True)",
    },
    "DataLoader": {
        "batch_sampler": "write data in the order wanted, such as torch.utils.data.Subset(data, order)",
        "collate_fn": "write collate=, of a list of samples",
        "drop_last": lambda value: f"write partial={not value}",
        "generator": "write key=fluxlike.Key(0), or seed torch's generator by torch.manual_seed",
        "num_workers": "write workers={value}",
        "pin_memory": "write device=, to which batches are copied ahead, on CUDA from pinned memory",
        "pin_memory_device": "write device={value}",
        "sampler": "write data in the order wanted, such as torch.utils.data.Subset(data, order)",
        "worker_init_fn": "leave it out: what is random in a worker follows from the key, the epoch and the "
        "batch",
    },
    "Learner": {
        "optimizer": "write rule=fluxlike.Adam(), or another rule",
        "optimiser": "write rule=fluxlike.Adam(), or another rule",
        "lr": "write rule=fluxlike.Adam({value}), or another rule",
        "loss_fn": "write loss=, such as fluxlike.losses.mse",
        "criterion": "write loss=, such as fluxlike.losses.mse",
        "epochs": "leave it out, and write fluxlike.fit(learner, {value})",
        "max_epochs": "leave it out, and write fluxlike.fit(learner, {value})",
    },
}

_HAS_AUX = "leave it out: fluxlike.withgradient returns all that f returns, of which the loss is the first"
_GRADIENT: dict[str, Advice] = {"has_aux": _HAS_AUX}

#: By the name of a function of ours.
OF_FUNCTIONS: dict[str, dict[str, Advice]] = {
    "gradient": _GRADIENT,
    "withgradient": _GRADIENT,
    "vmap": {
        "in_axes": "write in_dims={value}",
        "out_axes": "write out_dims={value}",
        "axis_size": "leave it out: it is that of the tensors that are mapped",
        "axis_name": "leave it out, and reduce over the members after vmap",
    },
    "jit": {
        "static_argnums": "write static={value}",
        "static_argnames": "write static={value}",
        "donate_argnums": "write donate={value}",
        "donate_argnames": "write donate={value}",
        "fullgraph": "leave it out: it is one graph always",
        "backend": "leave it out: Inductor compiles the graph",
        "mode": "leave it out: Inductor compiles the graph",
    },
}


def words_for(cls: type, /) -> Mapping[str, Advice]:
    """What to write for an argument of others that a class does not have, by its name."""
    words: dict[str, Advice] = {}
    for base in reversed(cls.__mro__):
        words.update(OF_ARGUMENTS.get(base.__name__, {}))
    return words
