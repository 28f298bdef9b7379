"""The families of torchvision's classifiers, each by a small member of it."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torchvision_here import torchvision
from wrapped_models import CLASSES, Wrapped, images, of_classes


def member(name: str, /, *args: Any, **settings: Any) -> nn.Module:
    """A model of torchvision, by the class or function that makes it."""
    return _get(name)(*args, num_classes=CLASSES, **settings)


def _get(name: str) -> Any:
    found: Any = torchvision().models
    for part in name.split("."):
        found = getattr(found, part)
    return found


def narrow(model: nn.Module, width: int, side: int) -> nn.Module:
    """An AlexNet or VGG whose classifier has many million parameters less."""
    model.classifier = nn.Sequential(
        nn.Linear(width * side**2, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, CLASSES)
    )
    return model


def alexnet() -> nn.Module:
    return narrow(member("AlexNet"), 256, 6)


def vgg(batch_norm: bool) -> nn.Module:
    layers = _get("vgg.make_layers")([8, "M", 16, "M", 16, 16, "M"], batch_norm=batch_norm)
    return narrow(member("VGG", layers, init_weights=False), 16, 7)


def resnet(block: str, **settings: Any) -> nn.Module:
    return member("ResNet", _get(f"resnet.{block}"), [1, 1, 1, 1], **settings)


def googlenet() -> nn.Module:
    return member("GoogLeNet", aux_logits=True, init_weights=False)


def inception(**settings: Any) -> nn.Module:
    return member("Inception3", init_weights=False, **settings)


def mobilenet_v3() -> nn.Module:
    block = _get("mobilenetv3.InvertedResidualConfig")
    return member(
        "MobileNetV3",
        [block(8, 3, 8, 8, True, "RE", 2, 1, 1.0), block(8, 5, 16, 16, True, "HS", 2, 1, 1.0)],
        16,
    )


def efficientnet(*blocks: tuple[str, Any]) -> nn.Module:
    made = [_get(f"efficientnet.{kind}")(*settings) for kind, settings in blocks]
    return member("EfficientNet", made, 0.2, stochastic_depth_prob=0.4, last_channel=16)


def regnet(**settings: Any) -> nn.Module:
    params = _get("regnet.BlockParams").from_init_params(
        depth=3, w_0=8, w_a=8, w_m=2.0, group_width=8, **settings
    )
    return member("RegNet", params, stem_width=8)


def convnext() -> nn.Module:
    block = _get("convnext.CNBlockConfig")
    return member("ConvNeXt", [block(8, 16, 1), block(16, None, 1)], stochastic_depth_prob=0.4)


def swin(version: str) -> nn.Module:
    settings: dict[str, Any] = {}
    if version == "V2":
        settings = {
            "block": _get("swin_transformer.SwinTransformerBlockV2"),
            "downsample_layer": _get("swin_transformer.PatchMergingV2"),
        }
    return member(
        "SwinTransformer", [2, 2], 8, [2, 2], [1, 2], [2, 2],
        stochastic_depth_prob=0.4, dropout=0.1, **settings,
    )  # fmt: skip


def maxvit() -> nn.Module:
    return member("MaxVit", (32, 32), 8, 2, [8, 16], [1, 1], 4, 0.4)


def video_resnet() -> nn.Module:
    blocks = _get("video.resnet")
    convolutions = [blocks.Conv2Plus1D] * 4
    return member(
        "video.resnet.VideoResNet", blocks.BasicBlock, convolutions, [1, 1, 1, 1], blocks.R2Plus1dStem
    )


def s3d() -> nn.Module:
    """An S3D that averages over small images too."""
    model = member("video.s3d")
    model.avgpool = nn.AvgPool3d((2, 1, 1), stride=1)
    return model


def video_swin() -> nn.Module:
    return member(
        "video.swin_transformer.SwinTransformer3d", [2, 2, 2], 8, [2, 2], [1, 2], [2, 2, 2],
        stochastic_depth_prob=0.4,
    )  # fmt: skip


def mvit() -> nn.Module:
    block = _get("video.mvit.MSBlockConfig")
    return member(
        "video.mvit.MViT", (16, 16), 4,
        [block(1, 8, 16, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
         block(2, 16, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1])],
        False, True, True, True, patch_embed_kernel=(3, 7, 7), patch_embed_stride=(2, 4, 4),
        patch_embed_padding=(1, 3, 3), stochastic_depth_prob=0.4,
    )  # fmt: skip


#: One of each kind runs with the quick tests, all with the slow ones.
QUICK = (
    "alexnet", "resnet", "densenet", "squeezenet", "mobilenetv3", "efficientnet", "convnext",
    "vision_transformer", "swin_transformer",
)  # fmt: skip

TORCHVISION: dict[str, Wrapped] = {
    "alexnet": Wrapped(alexnet, images(63), of_classes),
    "vgg": Wrapped(partial(vgg, False), images(32), of_classes),
    "vgg_bn": Wrapped(partial(vgg, True), images(32), of_classes),
    "resnet": Wrapped(partial(resnet, "BasicBlock"), images(32), of_classes),
    "resnext": Wrapped(
        partial(
            resnet, "Bottleneck", groups=4, width_per_group=2,
            replace_stride_with_dilation=[False, False, True],
        ),
        images(32),
        of_classes,
    ),
    "wide_resnet": Wrapped(partial(resnet, "Bottleneck", width_per_group=16), images(32), of_classes),
    "densenet": Wrapped(
        partial(
            member, "DenseNet", growth_rate=4, block_config=(2, 2, 2, 2), num_init_features=8, drop_rate=0.2
        ),
        images(32),
        of_classes,
    ),
    "googlenet": Wrapped(googlenet, images(48), of_classes),
    "inception": Wrapped(
        partial(inception, aux_logits=False, transform_input=True), images(75, batch=8), of_classes
    ),
    "squeezenet": Wrapped(partial(member, "SqueezeNet", "1_1"), images(32), of_classes),
    "mobilenetv2": Wrapped(
        partial(
            member, "MobileNetV2", width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2]]
        ),
        images(32),
        of_classes,
    ),
    "mobilenetv3": Wrapped(mobilenet_v3, images(32), of_classes),
    "mnasnet": Wrapped(partial(member, "MNASNet", 0.2), images(64), of_classes),
    "shufflenetv2": Wrapped(
        partial(member, "ShuffleNetV2", [2, 1, 1], [8, 8, 16, 32, 32]), images(64), of_classes
    ),
    "efficientnet": Wrapped(
        partial(
            efficientnet,
            ("MBConvConfig", (1, 3, 1, 8, 8, 1)),
            ("MBConvConfig", (4, 5, 2, 8, 16, 2)),
        ),
        images(32),
        of_classes,
    ),
    "efficientnet_v2": Wrapped(
        partial(
            efficientnet,
            ("FusedMBConvConfig", (2, 3, 1, 8, 8, 2)),
            ("MBConvConfig", (4, 3, 2, 8, 16, 1)),
        ),
        images(32),
        of_classes,
    ),
    "regnet": Wrapped(partial(regnet, se_ratio=0.25), images(32), of_classes),
    "convnext": Wrapped(convnext, images(32), of_classes),
    "vision_transformer": Wrapped(
        partial(
            member, "VisionTransformer", image_size=16, patch_size=8, num_layers=2, num_heads=2,
            hidden_dim=16, mlp_dim=24, dropout=0.1, attention_dropout=0.1,
        ),
        images(16),
        of_classes,
    ),
    "swin_transformer": Wrapped(partial(swin, "V1"), images(16), of_classes),
    "swin_transformer_v2": Wrapped(partial(swin, "V2"), images(16), of_classes),
    "maxvit": Wrapped(maxvit, images(32), of_classes),
    "video.resnet": Wrapped(video_resnet, images(8, batch=8, frames=(2,)), of_classes),
    "video.s3d": Wrapped(s3d, images(64, batch=4, frames=(14,)), of_classes),
    "video.swin_transformer": Wrapped(video_swin, images(8, frames=(4,)), of_classes),
    "video.mvit": Wrapped(mvit, images(16, frames=(4,)), of_classes),
}  # fmt: skip
