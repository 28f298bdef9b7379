"""Every network of a size that torchvision or timm publishes, beside theirs, by what its shapes tell.

Their numbers are held by the smallest networks of each family, in the files of the families.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torchvision_here import torchvision
from zoo_fit import assert_fits

from fluxlike import models as m
from fluxlike.models.efficientnet import EFFICIENTNETS_V2
from fluxlike.models.mobilenet_v3 import MOBILENETS_V3

pytestmark = pytest.mark.slow

#: Ours by torchvision's name.
TORCHVISION: dict[str, Any] = {
    "alexnet": m.AlexNet,
    **{f"vgg{depth}": partial(m.VGG, depth) for depth in (11, 13, 16, 19)},
    **{f"vgg{depth}_bn": partial(m.VGG, depth, batchnorm=True) for depth in (11, 13, 16, 19)},
    "squeezenet1_0": partial(m.SqueezeNet, "1.0"),
    "squeezenet1_1": partial(m.SqueezeNet, "1.1"),
    **{f"densenet{depth}": partial(m.DenseNet, depth) for depth in (121, 161, 169, 201)},
    **{f"resnet{depth}": partial(m.ResNet, depth) for depth in (18, 34, 50, 101, 152)},
    **{f"wide_resnet{depth}_2": partial(m.WideResNet, depth) for depth in (50, 101)},
    "resnext50_32x4d": partial(m.ResNeXt, 50),
    "resnext101_32x8d": partial(m.ResNeXt, 101),
    "resnext101_64x4d": partial(m.ResNeXt, (101, 64)),
    "mobilenet_v2": m.MobileNetV2,
    "mobilenet_v3_small": partial(m.MobileNetV3, "small"),
    "mobilenet_v3_large": m.MobileNetV3,
    "mnasnet0_5": partial(m.MNASNet, 0.5),
    "mnasnet0_75": partial(m.MNASNet, 0.75),
    "mnasnet1_0": m.MNASNet,
    "mnasnet1_3": partial(m.MNASNet, 1.3),
    **{f"efficientnet_b{i}": partial(m.EfficientNet, f"b{i}") for i in range(8)},
    "efficientnet_v2_s": m.EfficientNetV2,
    "efficientnet_v2_m": partial(m.EfficientNetV2, "medium"),
    "efficientnet_v2_l": partial(m.EfficientNetV2, "large"),
    **{f"convnext_{size}": partial(m.ConvNeXt, size) for size in ("tiny", "small", "base", "large")},
    "vit_b_16": partial(m.ViT, "base"),
    "vit_b_32": partial(m.ViT, "base", patch_size=32),
    "vit_l_16": partial(m.ViT, "large"),
    "vit_l_32": partial(m.ViT, "large", patch_size=32),
    "vit_h_14": partial(m.ViT, "huge"),
}


def of_timm(family: Any, config: m.MobileConfig) -> Any:
    """With the norms of timm's."""
    return partial(family, replace(config, eps=1e-5, momentum=0.1))


#: Ours by timm's name.
TIMM: dict[str, Any] = {
    "densenet121": partial(m.DenseNet, 121),
    "inception_v3": m.InceptionV3,
    "inception_v4": m.InceptionV4,
    "inception_resnet_v2": m.InceptionResNetV2,
    "legacy_xception": m.Xception,
    **{f"seresnet{depth}": partial(m.SEResNet, depth) for depth in (18, 34, 50, 101, 152)},
    "seresnext50_32x4d": partial(m.SEResNeXt, 50),
    "seresnext101_32x8d": partial(m.SEResNeXt, 101),
    "seresnext101_64x4d": partial(m.SEResNeXt, (101, 64)),
    "res2net50_14w_8s": partial(m.Res2Net, (50, 14, 8)),
    "res2net50_26w_4s": partial(m.Res2Net, 50),
    "res2net50_48w_2s": partial(m.Res2Net, (50, 48, 2)),
    "res2net50_26w_6s": partial(m.Res2Net, (50, 26, 6)),
    "res2net50_26w_8s": partial(m.Res2Net, (50, 26, 8)),
    "res2net101_26w_4s": partial(m.Res2Net, 101),
    "res2next50": partial(m.Res2NeXt, 50),
    "mobilenetv1_100": m.MobileNetV1,
    "mobilenetv1_125": partial(m.MobileNetV1, 1.25),
    "mobilenetv2_035": partial(m.MobileNetV2, 0.35),
    "mobilenetv2_100": m.MobileNetV2,
    "mobilenetv2_140": partial(m.MobileNetV2, 1.4),
    "mobilenetv3_small_100": of_timm(m.MobileNetV3, MOBILENETS_V3["small"]),
    "mobilenetv3_large_100": of_timm(m.MobileNetV3, MOBILENETS_V3["large"]),
    "mnasnet_050": partial(m.MNASNet, 0.5),
    "mnasnet_100": m.MNASNet,
    "efficientnet_b0": m.EfficientNet,
    "efficientnet_b3": partial(m.EfficientNet, "b3"),
    "efficientnetv2_s": of_timm(m.EfficientNetV2, EFFICIENTNETS_V2["small"]),
    **{f"convnext_{size}": partial(m.ConvNeXt, size) for size in ("atto", "femto", "pico", "nano")},
    **{f"convnext_{size}": partial(m.ConvNeXt, size) for size in ("tiny", "small", "base", "large")},
    "convmixer_768_32": partial(m.ConvMixer, (768, 32)),
    "convmixer_1024_20_ks9_p14": partial(m.ConvMixer, (1024, 20)),
    "convmixer_1536_20": partial(m.ConvMixer, (1536, 20)),
    "mixer_s16_224": partial(m.MLPMixer, "small"),
    "mixer_s32_224": partial(m.MLPMixer, "small", patch_size=32),
    "mixer_b16_224": partial(m.MLPMixer, "base"),
    "mixer_l16_224": partial(m.MLPMixer, "large"),
    **{f"resmlp_{depth}_224": partial(m.ResMLP, depth) for depth in (12, 24, 36)},
    "resmlp_big_24_224": partial(m.ResMLP, "big"),
    "gmlp_ti16_224": partial(m.gMLP, "tiny"),
    "gmlp_s16_224": partial(m.gMLP, "small"),
    "gmlp_b16_224": partial(m.gMLP, "base"),
    **{f"vit_{size}_patch16_224": partial(m.ViT, size) for size in ("tiny", "small", "base", "large")},
}


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_network_of_a_published_size_takes_the_weights_and_does_the_work_of_torchvisions(name):
    models = torchvision().models
    *_, weights = models.get_model_weights(name)
    theirs = partial(models.get_model, name, weights=None)
    assert_fits(TORCHVISION[name], theirs, published=weights.meta["num_params"])


@pytest.mark.parametrize("family", ["GoogLeNet", "InceptionV3"])
def test_an_inception_network_takes_the_weights_and_does_the_work_of_torchvisions(family):
    name = {"GoogLeNet": "googlenet", "InceptionV3": "inception_v3"}[family]
    theirs = partial(torchvision().models.get_model, name, weights=None, init_weights=False, aux_logits=False)
    assert_fits(getattr(m, family), theirs)


@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_a_published_size_takes_the_weights_and_does_the_work_of_timms(name):
    torchvision()
    timm = pytest.importorskip("timm")
    norms = {"bn_momentum": 3e-4} if name.startswith("mnasnet") else {}  # the authors'
    assert_fits(TIMM[name], partial(timm.create_model, name, pretrained=False, **norms))
