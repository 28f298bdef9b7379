"""Rows of mobile networks."""

from dataclasses import replace

from zoo_row import ZooRow

import fluxlike as fl
from fluxlike.models.efficientnet import EfficientNet, EfficientNetV2
from fluxlike.models.inverted_residual import Block, Stage, stages_of
from fluxlike.models.mnasnet import MNASNet
from fluxlike.models.mobile import MobileConfig
from fluxlike.models.mobilenet_v1 import MobileNetV1
from fluxlike.models.mobilenet_v2 import MobileNetV2
from fluxlike.models.mobilenet_v3 import MobileNetV3

V1 = MobileConfig(8, stages_of((Stage(3, 1, 16, residual=False),), 8, fl.relu6, fl.relu6), dropout=0.0)
V2 = MobileConfig(
    8, stages_of((Stage(3, 1, 8), Stage(3, 6, 16, 2, stride=2)), 8, fl.relu6), head=32, dropout=0.0
)
V3 = MobileConfig(
    8,
    ((Block(8, 24, 16, 5, 2, 8, fl.hardswish), Block(16, 40, 16, 3, 1, 8, fl.hardswish)),),
    head=32,
    hidden=24,
    activation=fl.hardswish,
    dropout=0.0,
)
MNAS = replace(V2, stages=stages_of((Stage(3, 1, 16), Stage(5, 3, 16, 2, stride=2)), 8))
EFFICIENT = replace(V2, stages=stages_of((Stage(3, 1, 8), Stage(3, 6, 16, 2, reduction=4)), 8, fl.silu))
EFFICIENT_V2 = replace(
    EFFICIENT, stages=stages_of((Stage(3, 1, 8, fused=True), Stage(3, 4, 8, 2, fused=True)), 8, fl.silu)
)
ALWAYS = {"drop_path": 0.0}  # an EfficientNet has more, which would hide that the loss falls

ROWS = [
    ZooRow("MobileNetV1", lambda **s: MobileNetV1(V1, **s), 32, ("dropout",)),
    ZooRow("MobileNetV2", lambda **s: MobileNetV2(V2, **s), 32),
    ZooRow("MobileNetV3", lambda **s: MobileNetV3(V3, **s), 32),
    ZooRow("MNASNet", lambda **s: MNASNet(MNAS, **s), 32),
    ZooRow("EfficientNet", lambda **s: EfficientNet(EFFICIENT, **ALWAYS | s), 32),
    ZooRow("EfficientNetV2", lambda **s: EfficientNetV2(EFFICIENT_V2, **ALWAYS | s), 32),
]
