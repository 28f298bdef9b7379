"""Configurations: data that is checked where it is written."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from functools import partial
from importlib import import_module

import pytest
import torch
from rows_cnn import ROWS as CNN
from rows_inception import ROWS as INCEPTION
from rows_mobile import ROWS as MOBILE
from rows_patches import ROWS as PATCHES
from rows_resnet import ROWS as RESNET

import fluxlike as fl
from fluxlike.models import blocks
from fluxlike.models.configurations import configuration, require_counts
from fluxlike.models.efficientnet import EFFICIENTNETS, SMALL, _configuration
from fluxlike.models.googlenet import GOOGLENET
from fluxlike.models.inception_resnet import INCEPTION_RESNET_V2
from fluxlike.models.inception_v3 import INCEPTION_V3
from fluxlike.models.inception_v4 import INCEPTION_V4
from fluxlike.models.mobile import MobileConfig
from fluxlike.models.resnet import RESNETS

FILES = (
    "resnet res2net alexnet vgg squeezenet densenet googlenet inception_v3 inception_v4 inception_resnet "
    "xception mobilenet_v3 efficientnet convnext convmixer mlp_mixer res_mlp g_mlp vit"
)


def tables():
    """Each published configuration, by file."""
    for file in FILES.split():
        for value in vars(import_module(f"fluxlike.models.{file}")).values():
            found = value.values() if isinstance(value, Mapping) else [value]
            yield from ((file, config) for config in found if type(config).__name__.endswith("Config"))


PUBLISHED = [config for _, config in tables()]
ROWS = [*CNN, *INCEPTION, *MOBILE, *PATCHES, *RESNET]
ResNetConfig = fl.models.ResNetConfig


def test_all_families_have_published_configurations():
    assert {file for file, _ in tables()} == set(FILES.split())


@pytest.mark.parametrize("config", PUBLISHED, ids=lambda config: type(config).__name__)
def test_a_configuration_is_data(config):
    assert is_dataclass(config)
    assert hash(config) == hash(copy.deepcopy(config))
    assert copy.deepcopy(config) == config == pickle.loads(pickle.dumps(config))
    assert config == replace(config)


def test_configurations_of_the_same_numbers_are_equal():
    assert _configuration(SMALL, 24, 1280, 0.2) == _configuration(SMALL, 24, 1280, 0.2)
    assert EFFICIENTNETS["b0"] != EFFICIENTNETS["b1"]
    assert "excite" not in {field.name for field in fields(MobileConfig)}


@pytest.mark.parametrize("config", [GOOGLENET, INCEPTION_V3, INCEPTION_V4, INCEPTION_RESNET_V2])
def test_signatures_of_inception_networks_are_short(config):
    family = getattr(fl.models, config.family)
    assert len(str(inspect.signature(family))) < 400
    assert repr(config) == f"InceptionConfig of {config.family}, {len(config.steps)} steps"


def test_two_models_of_one_configuration_share_no_layer():
    config = fl.models.InceptionConfig({"stem": fl.models.Unit(4), "pool": fl.models.Pool("max", 2)})
    a, b = (fl.models.GoogLeNet(config, nclasses=2) for _ in range(2))
    assert not {id(layer) for layer in a.backbone} & {id(layer) for layer in b.backbone}
    with pytest.raises(TypeError, match=r'found Conv\(.*write what they are made of, such as Pool\("max"'):
        fl.models.InceptionConfig({"stem": fl.Conv((1, 1), 3, 4)})
    for empty in ({}, (), {"block": {}}, {"block": ()}):
        with pytest.raises(ValueError, match="takes at least one layer, found"):
            fl.models.InceptionConfig(empty)
    with pytest.raises(TypeError, match=r"takes a dict of tables by name, found \(Unit"):
        fl.models.InceptionConfig((fl.models.Unit(4),))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_model_can_be_pickled(row):
    with torch.device("meta"):
        model = row.make(nclasses=3)
    again = pickle.loads(pickle.dumps(model))
    assert repr(again) == repr(model)
    assert again.origins == model.origins


WRONG = {
    "depths=50": partial(ResNetConfig, 50),
    r"depths=\(\)": partial(ResNetConfig, ()),
    r"depths=\(2, -1, 1\)": partial(ResNetConfig, (2, -1, 1)),
    "reduction=-2": partial(ResNetConfig, (1,), reduction=-2),
    "groups=1.5": partial(ResNetConfig, (1,), groups=1.5),
    r"stages=\(64, 128\)": partial(fl.models.VGGConfig, (64, 128)),
    r"stages=\(\)": partial(fl.models.VGGConfig, ()),
    r"channels=\(8, 8, 8\)": partial(fl.models.ConvNeXtConfig, (1, 1, 1, 1), (8, 8, 8)),
    "middle=-1": partial(fl.models.XceptionConfig, middle=-1),
    r"stem=\(8,\)": partial(fl.models.XceptionConfig, (8,)),
    r"channels=\(8, 8\)": partial(fl.models.AlexNetConfig, (8, 8)),
    r"fires=\(\(8, 0\),\)": partial(fl.models.SqueezeNetConfig, 3, 8, (1,), ((8, 0),)),
    "growth=0": partial(fl.models.DenseNetConfig, (1,), growth=0),
    "compression=0": partial(fl.models.DenseNetConfig, (1,), compression=0),
    "scale=0": partial(fl.models.Res2NetConfig, (1,), scale=0),
    "stem=0": partial(MobileConfig, 0, ((fl.models.Block(8, 8, 8, 3),),)),
    "kernel=0": partial(fl.models.Block, 8, 8, 8, 0),
    "expansion=True": partial(fl.models.Stage, 3, True, 8),
    r"ResMLPConfig\(dim=0": partial(fl.models.ResMLPConfig, depth=1, dim=0),
    "num_heads=0": partial(fl.models.ViTConfig, depth=1, dim=8, num_heads=0),
    "patch_size='8'": partial(fl.models.ConvMixerConfig, depth=1, channels=8, patch_size="8"),
    r"kernel=\(1, 0\)": partial(fl.models.Unit, 8, (1, 0)),
    "kind='median'": partial(fl.models.Pool, "median", 3),
}


@pytest.mark.parametrize("message", WRONG)
def test_a_number_that_is_none_is_an_error_where_it_is_written(message):
    with pytest.raises(ValueError, match=f"{message}.*: write"):
        WRONG[message]()


def test_the_error_shows_what_to_write():
    with pytest.raises(ValueError, match=r"a tuple of 2 whole numbers of at least 0, such as \(0, 0\)$"):
        require_counts("C", shape=(2,), least=0, pair=(1, -1))
    with pytest.raises(ValueError, match=r"tuple of tuples of 2 whole .* such as \(\(1, 1\), \(1, 1\)\)$"):
        require_counts("C", shape=(None, 2), pairs=[(1, 1)])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_channels_classes_and_rates_that_are_none_are_errors(row):
    with pytest.raises(ValueError, match=r"\w+\(inchannels='3'\): write a whole number of at least 1"):
        row.make(inchannels="3")
    with pytest.raises(ValueError, match=r"\w+\(nclasses=0\): write a whole number of at least 1"):
        row.make(nclasses=0)
    if "drop_path" in row.rates:
        with pytest.raises(ValueError, match=r"drop_path=2\): write a probability"):
            row.make(drop_path=2)
        with pytest.raises(TypeError, match=r"drop_path='a'\): write a probability"):
            row.make(drop_path="a")


def test_unet_refuses_numbers_that_are_none():
    backbone = fl.models.ResNet(ResNetConfig((1, 1), bottleneck=False))
    with pytest.raises(ValueError, match=r"UNet\(nclasses=0\)"):
        fl.models.UNet(backbone, nclasses=0)
    with pytest.raises(ValueError, match=r"UNet\(channels=\(8, 8, 0\)\)"):
        fl.models.UNet(backbone, channels=(8, 8, 0))
    with pytest.raises(ValueError, match=r"UNet\(channels=8\): write a tuple of whole numbers"):
        fl.models.UNet(backbone, channels=8)
    assert fl.models.UNet(backbone, nclasses=4)(torch.zeros(1, 3, 16, 16)).shape == (1, 4, 16, 16)


def mixers():
    return {"depth": 2, "dim": 16, "patch_size": 8}


def inception_of(family):
    return partial(getattr(fl.models, family), INCEPTION_V3)


SISTERS = [
    (
        partial(fl.models.SEResNet, ResNetConfig((1,))),
        ValueError,
        r"SEResNet .* reduction above 0.*reduction=16",
    ),
    (partial(fl.models.SEResNeXt, RESNETS[50]), ValueError, r"SEResNeXt takes .*groups above 1"),
    (partial(fl.models.ResNeXt, RESNETS[50]), ValueError, r"ResNeXt takes .* groups above 1, found 1"),
    (partial(fl.models.WideResNet, RESNETS[50]), ValueError, r"WideResNet takes .* width above 64, found 64"),
    (partial(ResNetConfig, (1,), False, 128), ValueError, r"width=128, groups=1.*write bottleneck=True"),
    (partial(ResNetConfig, (1,), False, groups=4), ValueError, r"width=64, groups=4.*write bottleneck=True"),
    (inception_of("GoogLeNet"), ValueError, r"those of InceptionV3; write InceptionV3\(\)"),
    (inception_of("InceptionV4"), ValueError, r"those of InceptionV3; write InceptionV3\(\)"),
    (
        lambda: fl.models.MLPMixer(fl.models.ResMLPConfig(**mixers()), image_size=16),
        TypeError,
        "MLPMixer takes one of 'small'.* or a MixerConfig, found ResMLPConfig",
    ),
    (
        lambda: fl.models.gMLP(fl.models.MixerConfig(**mixers()), image_size=16),
        TypeError,
        "gMLP takes .*or a gMLPConfig, found MixerConfig",
    ),
    (partial(fl.models.Res2Net, RESNETS[50]), TypeError, "or a Res2NetConfig, found ResNetConfig"),
]


@pytest.mark.parametrize(("make", "kind", "message"), SISTERS)
def test_the_configuration_of_another_family_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()


def test_a_gmlp_is_six_times_as_wide_inside():
    assert fl.models.gMLPConfig(depth=30, dim=128).expansion == 6
    model = fl.models.gMLP(fl.models.gMLPConfig(**mixers()), image_size=16, nclasses=2)
    assert model.backbone["blocks"][0].branch["fc1"].weight.shape == (96, 16)
    with pytest.raises(ValueError, match=r"dim=3, expansion=5.*are halved, found 15"):
        fl.models.gMLPConfig(depth=1, dim=3, expansion=5)


@pytest.mark.parametrize(
    "kind", ["ViTConfig", "MixerConfig", "ResMLPConfig", "gMLPConfig", "ConvMixerConfig"]
)
def test_depth_and_width_of_transformers_and_mixers_have_names(kind):
    made = getattr(fl.models, kind)
    with pytest.raises(TypeError, match="positional argument"):
        made(12, 768)
    assert next(iter(fields(made))).name == "depth"


@pytest.mark.parametrize(
    ("family", "which", "hint"),
    [
        ("ResNet", "50", "50"),
        ("EfficientNet", "B0", "'b0'"),
        ("EfficientNetV2", "s", "'small'"),
        ("ViT", "bsae", "'base'"),
    ],
)
def test_the_hint_is_what_to_write(family, which, hint):
    with pytest.raises(ValueError, match=rf"{family}\('{which}'\): .*; did you mean {hint}\?$"):
        getattr(fl.models, family)(which)


def test_no_hint_is_given_for_what_is_like_nothing():
    for which in ("", "xyz"):
        with pytest.raises(ValueError, match=r"or a int$|or a \w+$"):
            configuration("Family", {"one": 1}, which)


def test_a_res2net_draws_no_weights_that_it_does_not_keep(monkeypatch):
    drawn = []
    draw = blocks.kaiming_normal

    def counting(shape):
        drawn.append(tuple(shape))
        return draw(shape)

    monkeypatch.setattr(blocks, "kaiming_normal", counting)
    model = fl.models.Res2Net(fl.models.Res2NetConfig((1, 1), width=8), nclasses=2)
    kept = [tuple(x.shape) for x in fl.trainables(model) if x.ndim == 4]
    assert sorted(drawn) == sorted(kept)


def test_the_parts_of_configurations_are_public():
    block = fl.models.Block(8, 16, 8, 3)
    stages = fl.models.stages_of((fl.models.Stage(3, 2, 8),), 8)
    assert stages == ((block,),)
    unit = fl.models.Unit(8)
    assert fl.models.ScaledResidual({"a": unit}, 0.1).branches == (("a", unit),)
