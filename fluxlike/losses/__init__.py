"""Losses: functions of prediction and target, reduced by `agg`.

Batch first, classes on axis 1, as in torch. Shapes must agree: nothing is broadcast. `agg` is the mean
unless said otherwise; ``agg=torch.sum`` adds up, ``agg=None`` keeps one loss an entry. The mean of no
entries is NaN, as in torch. Of 16-bit tensors, losses are computed in float32 and rounded once.
"""

from fluxlike.losses.binary import binary_focal, binarycrossentropy, logitbinarycrossentropy
from fluxlike.losses.classes import (
    crossentropy,
    focal,
    kldivergence,
    label_smoothing,
    logitcrossentropy,
)
from fluxlike.losses.margins import hinge, siamese_contrastive, squared_hinge
from fluxlike.losses.regression import huber, mae, mse, msle, poisson
from fluxlike.losses.segmentation import dice_coeff, tversky
from fluxlike.losses.sequence import ctc

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
