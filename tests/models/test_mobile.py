"""Mobile networks against torchvision and timm."""

import re
from dataclasses import replace
from functools import partial

import pytest
import torch
from torchvision_here import torchvision
from zoo_parity import assert_same_as, on_meta

import fluxlike as fl
from fluxlike.models import mnasnet, mobilenet_v1, mobilenet_v2
from fluxlike.models.efficientnet import EFFICIENTNETS, EFFICIENTNETS_V2, EfficientNet, EfficientNetV2
from fluxlike.models.inverted_residual import Block, Stage, inverted_residual, stages_of
from fluxlike.models.mnasnet import MNASNet
from fluxlike.models.mobile import MobileConfig
from fluxlike.models.mobilenet_v1 import MobileNetV1
from fluxlike.models.mobilenet_v2 import MobileNetV2
from fluxlike.models.mobilenet_v3 import MOBILENETS_V3, MobileNetV3

#: Ours by torchvision's name, and what the depth of a network makes slow. `test_published_sizes` has all.
TORCHVISION = {
    "mobilenet_v2": MobileNetV2,
    "mobilenet_v3_small": partial(MobileNetV3, "small"),
    "mobilenet_v3_large": MobileNetV3,
    "mnasnet0_5": partial(MNASNet, 0.5),
    "efficientnet_b0": EfficientNet,
}
DEEP = {
    "mnasnet1_0": MNASNet,
    "efficientnet_b1": partial(EfficientNet, "b1"),
    "efficientnet_v2_s": EfficientNetV2,
}


V1_OF_HALF, V2_OF_HALF, MNASNET_OF_HALF = (
    family._configuration(0.5) for family in (mobilenet_v1, mobilenet_v2, mnasnet)
)


def of_timm(table, name, family):
    """The configuration with the norms of timm's."""
    return partial(family, replace(table[name], eps=1e-5, momentum=0.1))


TIMM = {
    "mobilenetv1_100": MobileNetV1,
    "mobilenetv2_100": MobileNetV2,
    "mobilenetv3_large_100": of_timm(MOBILENETS_V3, "large", MobileNetV3),
    "mnasnet_050": partial(MNASNet, 0.5),
    "efficientnet_b0": EfficientNet,
}
DEEP_TIMM = {
    "mobilenetv2_035": partial(MobileNetV2, 0.35),
    "mobilenetv3_small_100": of_timm(MOBILENETS_V3, "small", MobileNetV3),
    "efficientnetv2_s": of_timm(EFFICIENTNETS_V2, "small", EfficientNetV2),
}


def rows(quick, deep):
    slow = (pytest.param(*row, id=row[0], marks=pytest.mark.slow) for row in deep.items())
    return pytest.mark.parametrize(
        ("name", "make"), [*(pytest.param(*row, id=row[0]) for row in quick.items()), *slow]
    )


def images():
    return torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@rows(TORCHVISION, DEEP)
def test_a_mobile_network_with_torchvisions_weights_gives_torchvisions_scores(name, make):
    theirs = torchvision().models.get_model(name, weights=None, num_classes=10)
    assert_same_as(on_meta(make, nclasses=10), theirs, images())


@rows(TIMM, DEEP_TIMM)
def test_a_mobile_network_with_timms_weights_gives_timms_scores(name, make):
    torchvision()
    timm = pytest.importorskip("timm")
    norms = {"bn_momentum": 3e-4} if name.startswith("mnasnet") else {}  # the authors'
    theirs = timm.create_model(name, pretrained=False, num_classes=10, **norms)
    assert_same_as(on_meta(make, nclasses=10), theirs, images())


@pytest.mark.parametrize(
    ("name", "make", "width"),
    [
        ("mobilenet_v2", MobileNetV2, 0.35),
        ("mobilenet_v3_small", partial(MobileNetV3, "small", width=0.6), 0.6),
    ],
)
def test_a_narrower_network_gives_torchvisions_scores(name, make, width):
    theirs = torchvision().models.get_model(name, weights=None, num_classes=10, width_mult=width)
    ours = make(nclasses=10) if isinstance(make, partial) else make(width, nclasses=10)
    assert_same_as(ours, theirs, images())


@rows(
    {
        "mobilenet_v2": MobileNetV2,
        "mobilenet_v3_large": MobileNetV3,
        "efficientnet_b7": partial(EfficientNet, "b7"),
        "efficientnet_v2_m": partial(EfficientNetV2, "medium"),
    },
    {},
)
def test_dropout_is_torchvisions_unless_it_is_given(name, make):
    with torch.device("meta"):
        theirs = torchvision().models.get_model(name, weights=None)
        ours, given = make(), make(dropout=0.0)
    wanted = [x.p for x in theirs.modules() if isinstance(x, torch.nn.Dropout)]
    assert [ours.classifier["dropout"].p] == wanted
    assert given.classifier["dropout"].p == 0.0


def test_stochastic_depth_rises_in_equal_steps_to_the_last_block():
    with torch.device("meta"):
        model = EfficientNet("b0", drop_path=0.3)
    blocks = [block for stage in model.backbone.layers[1:-1] for block in stage.layers]
    rates = {i: b.drop_path.p for i, b in enumerate(blocks) if isinstance(b, fl.models.Residual)}
    assert len(blocks) == 16
    assert rates == {i: pytest.approx(0.3 * i / 15) for i in (2, 4, 6, 7, 9, 10, 12, 13, 14)}


@pytest.mark.parametrize(
    ("block", "steps"),
    [
        (Block(8, 48, 8, kernel=3), ("expand", "depthwise", "project")),
        (Block(8, 8, 8, kernel=3), ("depthwise", "project")),
        (Block(8, 48, 8, kernel=5, squeezed=2), ("expand", "depthwise", "excite", "project")),
        (Block(8, 32, 8, kernel=3, fused=True), ("fused", "project")),
        (Block(8, 8, 8, kernel=3, fused=True), ("fused",)),
    ],
)
def test_a_block_has_the_steps_that_its_configuration_says(block, steps):
    x = torch.randn(2, 8, 7, 7)
    layer = inverted_residual(block)
    assert layer.branch.names == steps
    assert torch.equal(layer(x), x + layer.branch(x))
    for other in (replace(block, stride=2), replace(block, channels=16), replace(block, residual=False)):
        layer = inverted_residual(other)
        assert layer["branch"].names == steps
        assert torch.equal(layer(x), layer["branch"](x))
        assert layer(x).shape[1:] == (other.channels, *[4 if other.stride == 2 else 7] * 2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(MobileNetV3, "medium"), r"MobileNetV3\('medium'\): write one of 'small', 'large', or a"),
        (partial(EfficientNet, "b8"), r"EfficientNet\('b8'\): write one of 'b0', .*'b7', or a MobileConfig"),
        (partial(EfficientNetV2, "s"), r"EfficientNetV2\('s'\): write one of 'small'"),
        (partial(MobileNetV2, 0), r"MobileNetV2 takes a positive width, .* found 0"),
        (partial(MNASNet, float("nan")), r"MNASNet takes a positive width, .* found nan"),
        (partial(MobileNetV3, width=-1.0), r"MobileNetV3 takes a positive width, .* found -1.0"),
    ],
)
def test_a_size_that_is_not_there_is_an_error_that_says_what_to_write(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("make", [MobileNetV1, MobileNetV2, MNASNet])
def test_a_width_that_is_no_number_is_an_error(make):
    with pytest.raises(TypeError, match=r"takes a width, such as 0\.5 .* found str"):
        make("small")


@pytest.mark.parametrize(
    ("make", "family", "config"),
    [
        (MobileNetV1, "MobileNetV2", V2_OF_HALF),
        (MobileNetV2, "MobileNetV3", MOBILENETS_V3["small"]),
        (partial(MobileNetV3, width=0.5), "EfficientNet", EFFICIENTNETS["b0"]),
        (MNASNet, "MobileNetV1", V1_OF_HALF),
        (EfficientNet, "EfficientNetV2", EFFICIENTNETS_V2["small"]),
        (EfficientNetV2, "MNASNet", MNASNET_OF_HALF),
    ],
)
def test_the_configuration_of_another_mobile_family_is_an_error_that_names_both(make, family, config):
    own = getattr(make, "func", make).__name__
    with pytest.raises(ValueError) as error:
        make(config)
    message = rf"{own} takes a configuration .* found one of {family}; write {family}\(config\), or .*{own}\("
    assert re.match(message, str(error.value))
    with torch.device("meta"):
        getattr(fl.models, family)(config)
        make(replace(config, family=""))


def test_every_published_configuration_of_a_mobile_family_is_of_that_family():
    for family, table in (
        ("MobileNetV3", MOBILENETS_V3), ("EfficientNet", EFFICIENTNETS), ("EfficientNetV2", EFFICIENTNETS_V2)
    ):  # fmt: skip
        assert {config.family for config in table.values()} == {family}
    assert [c.family for c in (V1_OF_HALF, V2_OF_HALF, MNASNET_OF_HALF)] == [
        "MobileNetV1", "MobileNetV2", "MNASNet"
    ]  # fmt: skip
    assert MobileConfig(8, ((Block(8, 8, 8, 3),),)).family == ""


def test_blocks_that_do_not_follow_each_other_are_an_error():
    with pytest.raises(
        ValueError, match=r"block 1 of stage 2 takes 8 channels, .* gives 16; write Block\(inp"
    ):
        MobileConfig(8, ((Block(8, 8, 8, 3),), (Block(8, 8, 16, 3), Block(8, 8, 16, 3))))
    with pytest.raises(ValueError, match="stages of at least one block each"):
        MobileConfig(8, stages_of((Stage(3, 1, 8, 0),), 8))


def test_weights_of_another_configuration_are_an_error_that_names_the_places():
    theirs = torchvision().models.mobilenet_v2(weights=None, num_classes=10).state_dict()
    with pytest.raises(ValueError, match=r"\.weight is \(32, 3, 3, 3\) in the checkpoint, \(16, 3, 3, 3\)"):
        fl.models.load_weights(theirs, MobileNetV2(0.5, nclasses=10))
    with pytest.raises(ValueError, match=r"nearest are torchvision.s names"):
        fl.models.load_weights(theirs, MNASNet(nclasses=10))


def test_weights_of_timm_are_refused_where_they_would_give_other_scores():
    torchvision()
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("mobilenetv3_small_100", pretrained=False, num_classes=10).state_dict()
    with pytest.raises(ValueError, match=r"nearest are torchvision.s names"):
        fl.models.load_weights(theirs, MobileNetV3("small", nclasses=10))


def test_a_classifier_of_other_classes_is_kept():
    theirs = torchvision().models.mobilenet_v3_small(weights=None)
    model = MobileNetV3("small", nclasses=7)
    loaded = fl.models.load_weights(theirs.state_dict(), model, classifier=False)
    assert torch.equal(loaded.backbone["stem"]["conv"].weight, theirs.features[0][0].weight)
    assert loaded.classifier["fc"].weight is model.classifier["fc"].weight
