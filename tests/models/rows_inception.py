"""Rows of inception networks, and Res2Net."""

from zoo_row import ZooRow

from fluxlike.models.googlenet import GOOGLENET, GoogLeNet
from fluxlike.models.inception import InceptionConfig
from fluxlike.models.inception_resnet import INCEPTION_RESNET_V2, InceptionResNetV2
from fluxlike.models.inception_v3 import INCEPTION_V3, InceptionV3
from fluxlike.models.inception_v4 import INCEPTION_V4, InceptionV4
from fluxlike.models.res2net import Res2Net, Res2NetConfig, Res2NeXt
from fluxlike.models.xception import Xception, XceptionConfig

__all__ = ["ROWS", "SMALL", "some"]


def some(config: InceptionConfig, *names: str) -> InceptionConfig:
    """A few steps of a network; of steps in a row, two."""
    tables = dict(config.steps)
    rows = {name for name in names if name.startswith("blocks")}
    return InceptionConfig({name: tables[name][:2] if name in rows else tables[name] for name in names})


SMALL = {
    "GoogLeNet": some(GOOGLENET, "conv1", "maxpool1", "inception3a", "maxpool3", "inception4a"),
    "InceptionV3": some(INCEPTION_V3, "conv1a", "maxpool1", "mixed5b", "mixed6a"),
    "InceptionV4": some(INCEPTION_V4, "conv1", "mixed3a", "mixed4a", "inception_a1", "inception_b1"),
    "InceptionResNetV2": some(INCEPTION_RESNET_V2, "conv1a", "maxpool3a", "mixed5b", "blocks35", "block8"),
    "Xception": XceptionConfig((8, 16), (16, 32), 1, 32, (48, 64)),
    "Res2Net": Res2NetConfig((2, 1), width=8),
    "Res2NeXt": Res2NetConfig((2, 1), width=4, groups=2),
}

ROWS = [
    ZooRow("GoogLeNet", lambda **s: GoogLeNet(SMALL["GoogLeNet"], **s), 32, ("dropout",)),
    ZooRow("InceptionV3", lambda **s: InceptionV3(SMALL["InceptionV3"], **s), 32, ("dropout",)),
    ZooRow("InceptionV4", lambda **s: InceptionV4(SMALL["InceptionV4"], **s), 32, ("dropout",)),
    ZooRow("InceptionResNetV2", lambda **s: InceptionResNetV2(SMALL["InceptionResNetV2"], **s), 32),
    ZooRow("Xception", lambda **s: Xception(SMALL["Xception"], **s), 32),
    ZooRow("Res2Net", lambda **s: Res2Net(SMALL["Res2Net"], **s), 32),
    ZooRow("Res2NeXt", lambda **s: Res2NeXt(SMALL["Res2NeXt"], **s), 32),
]
