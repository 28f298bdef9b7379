"""ResNet and VGG for JAX, with torchvision's weights: functions of a dict of arrays, channels last."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

from torch import Tensor, nn

Arrays = dict[str, Any]

_DEPTHS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def runs_at(threads: int) -> bool:
    """Whether JAX is installed, and XLA uses so many threads: as many as there are cores."""
    return importlib.util.find_spec("jax") is not None and threads == len(os.sched_getaffinity(0))


def channels_last(x: Tensor) -> Any:
    """A batch of images as JAX gets it, (N, H, W, C)."""
    import jax.numpy as jnp

    return jnp.asarray(x.permute(0, 2, 3, 1).contiguous().numpy())


def arrays(module: nn.Module) -> tuple[Arrays, Arrays]:
    """The parameters of a module of torchvision, kernels as (H, W, in, out) and matrices as (in, out).

    Returns:
        The parameters, and the running statistics, by torchvision's names.
    """
    import jax.numpy as jnp

    turned = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}

    def array(x: Tensor) -> Any:
        return jnp.asarray(x.detach().permute(turned[x.ndim]).contiguous().clone().numpy())

    parameters = {name: array(x) for name, x in module.named_parameters()}
    statistics = {name: array(x) for name, x in module.named_buffers() if x.ndim}
    return parameters, statistics


def _convolution(x: Any, kernel: Any, stride: int = 1) -> Any:
    from jax import lax

    pad = [(size // 2, size // 2) for size in kernel.shape[:2]]
    axes = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (stride, stride), pad, dimension_numbers=axes)


def _pool(x: Any, size: int, stride: int, pad: int) -> Any:
    import jax.numpy as jnp
    from jax import lax

    around = ((0, 0), (pad, pad), (pad, pad), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, stride, stride, 1), around)


def resnet(
    depth: int, weights: Arrays, statistics: Arrays, x: Any, *, training: bool = False
) -> tuple[Any, Arrays]:
    """The logits of a residual network, and its new running statistics.

    Args:
        depth: 18, 50 or 101.
        weights: as of `arrays`.
        statistics: as of `arrays`.
        x: (N, H, W, 3).
        training: whether BatchNorms take the statistics of the batch, and remember them. (default: False)
    """
    import jax
    from jax import lax

    new = dict(statistics)

    def norm(name: str, x: Any) -> Any:
        mean, var = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
        if training:
            n = x.size // x.shape[-1]
            batch_mean, batch_var = x.mean((0, 1, 2)), x.var((0, 1, 2))
            new[f"{name}.running_mean"] = 0.9 * mean + 0.1 * batch_mean
            new[f"{name}.running_var"] = 0.9 * var + 0.1 * batch_var * n / (n - 1)
            mean, var = batch_mean, batch_var
        scale = weights[f"{name}.weight"] * lax.rsqrt(var + 1e-5)
        return x * scale + (weights[f"{name}.bias"] - mean * scale)

    def conv_norm(conv: str, bn: str, x: Any, stride: int = 1) -> Any:
        return norm(bn, _convolution(x, weights[f"{conv}.weight"], stride))

    relu, bottleneck = jax.nn.relu, depth >= 50
    x = _pool(relu(conv_norm("conv1", "bn1", x, 2)), 3, 2, 1)
    for stage, blocks in enumerate(_DEPTHS[depth], 1):
        for i in range(blocks):
            place = f"layer{stage}.{i}"
            convs = 3 if bottleneck else 2
            stride = 2 if i == 0 and stage > 1 else 1
            y = x
            for n in range(1, convs + 1):
                strided = stride if n == (2 if bottleneck else 1) else 1
                y = conv_norm(f"{place}.conv{n}", f"{place}.bn{n}", y, strided)
                y = y if n == convs else relu(y)
            if f"{place}.downsample.0.weight" in weights:
                x = conv_norm(f"{place}.downsample.0", f"{place}.downsample.1", x, stride)
            x = relu(x + y)
    return x.mean((1, 2)) @ weights["fc.weight"] + weights["fc.bias"], new


def vgg(
    stages: tuple[tuple[int, int], ...], weights: Arrays, statistics: Arrays, x: Any
) -> tuple[Any, Arrays]:
    """The logits of a VGG without norms, in test mode, for images of 224×224.

    Args:
        stages: pairs of how many convolutions a stage has, and their channels.
        weights: as of `arrays`.
        statistics: none; returned as they are.
        x: (N, 224, 224, 3).
    """
    import jax

    n = 0
    for convolutions, _ in stages:
        for _ in range(convolutions):
            place = f"features.{n}"
            x = jax.nn.relu(_convolution(x, weights[f"{place}.weight"]) + weights[f"{place}.bias"])
            n += 2
        x, n = _pool(x, 2, 2, 0), n + 1
    x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)  # the order in which torchvision counts features
    for n in (0, 3, 6):
        x = x @ weights[f"classifier.{n}.weight"] + weights[f"classifier.{n}.bias"]
        x = x if n == 6 else jax.nn.relu(x)
    return x, statistics
