"""Losses: functions of prediction and target, reduced by `agg`.

Batch first, classes on axis 1, as in torch. Shapes must agree: nothing is broadcast. `agg` is the mean
unless said otherwise; ``agg=torch.sum`` adds up, ``agg=None`` keeps one loss an entry. The mean of no
entries is NaN, as in torch.

A loss is of the dtype that prediction and target promote to. Of 16 bits, all is computed in float32,
`agg` too, and the tensor that it returns is rounded once; under autocast it stays float32, as torch's.
Weights serve any dtype.
"""

from typing import TYPE_CHECKING

from fluxlike.losses.binary import binary_focal, binarycrossentropy, logitbinarycrossentropy
from fluxlike.losses.classes import (
    crossentropy,
    focal,
    kldivergence,
    logitcrossentropy,
)
from fluxlike.losses.margins import hinge, siamese_contrastive, squared_hinge
from fluxlike.losses.regression import huber, mae, mse, msle, poisson
from fluxlike.losses.segmentation import dice_coeff, tversky
from fluxlike.losses.sequence import ctc
from fluxlike.losses.smoothing import label_smoothing
from fluxlike.rooms import room

__all__ = [
    "binary_focal",
    "binarycrossentropy",
    "crossentropy",
    "ctc",
    "dice_coeff",
    "focal",
    "hinge",
    "huber",
    "kldivergence",
    "label_smoothing",
    "logitbinarycrossentropy",
    "logitcrossentropy",
    "mae",
    "mse",
    "msle",
    "poisson",
    "siamese_contrastive",
    "squared_hinge",
    "tversky",
]

if not TYPE_CHECKING:
    __getattr__, __dir__ = room(__name__, __all__)
