"""Rows of residual networks."""

from zoo_row import ZooRow

import fluxlike as fl
from fluxlike.models.resnet import ResNetConfig

SMALL = ResNetConfig((1, 1))

ROWS = [
    ZooRow("ResNet", lambda **s: fl.models.ResNet(ResNetConfig((1, 1), bottleneck=False), **s), 32),
    ZooRow("ResNet with bottlenecks", lambda **s: fl.models.ResNet(SMALL, **s), 32),
    ZooRow("WideResNet", lambda **s: fl.models.WideResNet(ResNetConfig((1, 1), width=128), **s), 32),
    ZooRow("ResNeXt", lambda **s: fl.models.ResNeXt(ResNetConfig((1, 1), groups=32, width=4), **s), 32),
    ZooRow("SEResNet", lambda **s: fl.models.SEResNet(ResNetConfig((1, 1), reduction=16), **s), 32),
    ZooRow(
        "SEResNeXt",
        lambda **s: fl.models.SEResNeXt(ResNetConfig((1, 1), groups=32, width=4, reduction=16), **s),
        32,
    ),
]
