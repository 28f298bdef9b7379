"""The models of `train`: short compositions of layers, which numbers of the data are standardised for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fluxlike.command.config import Cnn, Configuration, ImageFolder, Mlp
from fluxlike.command.torchvision_models import torchvision_model
from fluxlike.data.images import IMAGENET_MEAN, IMAGENET_STD
from fluxlike.layers.activations import flatten, relu
from fluxlike.layers.basic import Dense
from fluxlike.layers.batchnorm import BatchNorm
from fluxlike.layers.compose import Chain
from fluxlike.layers.conv import Conv
from fluxlike.layers.dropout import Dropout
from fluxlike.layers.global_pool import GlobalMeanPool
from fluxlike.layers.pool import MaxPool
from fluxlike.trees.functor import functor

__all__ = ["Spread", "Standardise", "Unstandardise", "built", "spread_of_images", "spread_of_rows"]


@dataclass(frozen=True)
class Spread:
    """Where numbers lie, and how far apart.

    Attributes:
        mean: float32, of a shape that broadcasts to an observation.
        deviation: of the same shape, above 0.
    """

    mean: Tensor
    deviation: Tensor


def spread_of_rows(rows: Tensor, /) -> Spread:
    """Mean and standard deviation of each column, 1 for the deviation of a constant one.

    Args:
        rows: floating, of shape (N, C).

    Example:
        >>> import torch
        >>> spread_of_rows(torch.tensor([[1.0, 5.0], [3.0, 5.0]])).deviation
        tensor([1., 1.])
    """
    wide = rows.double()
    mean, deviation = wide.mean(0), wide.std(0, correction=0)
    # rounded means leave a constant column a little deviation
    constant = (rows == rows[0]).all(0)
    return Spread(mean.float(), torch.where(constant, 1.0, deviation).float())


def spread_of_images(channels: int, /) -> Spread:
    """ImageNet's mean and standard deviation of each channel, for one channel those of all three."""
    mean, deviation = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    if channels == 1:
        mean, deviation = mean.mean(0, keepdim=True), deviation.mean(0, keepdim=True)
    return Spread(mean[:, None, None], deviation[:, None, None])


@functor(buffers=("mean", "deviation"))
@dataclass(frozen=True)
class Standardise:
    """``(x - mean)/deviation``.

    Attributes:
        mean: a buffer, of a shape that broadcasts to an observation.
        deviation: likewise.
    """

    mean: Tensor
    deviation: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation


@functor(buffers=("mean", "deviation"))
@dataclass(frozen=True)
class Unstandardise:
    """``mean + deviation·x``, what undoes `Standardise`.

    Attributes:
        mean: a buffer, of a shape that broadcasts to an observation.
        deviation: likewise.
    """

    mean: Tensor
    deviation: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.mean + self.deviation * x


def built(run: Configuration, inputs: Spread, outputs: int, targets: Spread | None = None, /) -> Chain:
    """The model of a configuration, from what the data holds to scores of classes, or to values.

    Args:
        run: the configuration.
        inputs: of the images or rows that the model gets.
        outputs: how many classes or values.
        targets: of values; None for classes.

    Raises:
        ValueError: a model that does not take images of this size.
        ImportError: torchvision is not installed.
    """
    layers: list[Any] = [Standardise(inputs.mean, inputs.deviation)]
    if isinstance(run.model, Mlp):
        layers += _mlp(run.model, run.data, len(inputs.mean), outputs)
    elif isinstance(run.data, ImageFolder):
        if isinstance(run.model, Cnn):
            layers += _cnn(run.model, run.data, outputs)
        else:
            layers.append(torchvision_model(run.model, run.data.size, outputs))
    if targets is not None:
        layers.append(Unstandardise(targets.mean, targets.deviation))
    return Chain(*layers)


def _mlp(model: Mlp, data: Any, inputs: int, outputs: int) -> list[Any]:
    layers: list[Any] = []
    if isinstance(data, ImageFolder):
        layers.append(flatten)
        inputs *= data.size**2
    for width in model.hidden:
        layers.append(Dense(inputs, width, relu))
        layers += [Dropout(model.dropout)] if model.dropout else []
        inputs = width
    return [*layers, Dense(inputs, outputs)]


def _cnn(model: Cnn, data: ImageFolder, outputs: int) -> list[Any]:
    count = len(model.channels)
    if not data.size >> count:
        most = data.size.bit_length() - 1
        raise ValueError(
            f"[model] channels has {count} numbers, one a convolution that halves the image, and [data] size "
            f"is {data.size}, which can be halved {most} times; write fewer, or a size of at least {2**count}"
        )
    layers: list[Any] = []
    channels = data.channels
    for width in model.channels:
        layers += [Conv((3, 3), channels, width, pad=1, bias=False), BatchNorm(width, relu), MaxPool((2, 2))]
        channels = width
    layers.append(GlobalMeanPool())
    layers += [Dropout(model.dropout)] if model.dropout else []
    return [*layers, Dense(channels, outputs)]
