"""Rows of classic convolutional networks."""

from functools import partial

from zoo_row import ZooRow

from fluxlike.models.alexnet import AlexNet, AlexNetConfig
from fluxlike.models.densenet import DenseNet, DenseNetConfig
from fluxlike.models.squeezenet import SqueezeNet, SqueezeNetConfig
from fluxlike.models.vgg import VGG, VGGConfig

SMALL_ALEXNET = AlexNetConfig((8, 8, 16, 8, 8), hidden=16)
SMALL_VGG = VGGConfig(((1, 8), (2, 16)), hidden=16)
SMALL_SQUEEZENET = SqueezeNetConfig(3, 16, (1, 3), ((8, 16), (8, 16), (8, 32)))
SMALL_DENSENET = DenseNetConfig((2, 3), growth=8, channels=16)

# What half of few features says is noise: dropout is tested where a test asks for it.
ROWS = [
    ZooRow(name, partial(make, config, dropout=0.0, **settings), size, ("dropout",))
    for name, make, config, settings, size in (
        ("AlexNet", AlexNet, SMALL_ALEXNET, {}, 64),
        ("VGG", VGG, SMALL_VGG, {}, 16),
        ("VGG with BatchNorm", VGG, SMALL_VGG, {"batchnorm": True}, 16),
        ("SqueezeNet", SqueezeNet, SMALL_SQUEEZENET, {}, 32),
        ("DenseNet", DenseNet, SMALL_DENSENET, {}, 32),
    )
]
