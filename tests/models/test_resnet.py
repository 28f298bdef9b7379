"""Residual networks against torchvision and timm."""

import pytest
import torch
from torchvision_here import torchvision
from zoo_parity import assert_same_as

import fluxlike as fl

TORCHVISION = [
    ("ResNet", 18, "resnet18"),
    ("ResNet", 50, "resnet50"),
    ("WideResNet", 50, "wide_resnet50_2"),
    ("ResNeXt", 50, "resnext50_32x4d"),
]
DEEP = [
    ("ResNet", 34, "resnet34"),
    ("ResNet", 101, "resnet101"),
    ("ResNet", 152, "resnet152"),
    ("WideResNet", 101, "wide_resnet101_2"),
    ("ResNeXt", 101, "resnext101_32x8d"),
    ("ResNeXt", (101, 64), "resnext101_64x4d"),
]
TIMM = [
    ("SEResNet", 18, "seresnet18"),
    ("SEResNet", 50, "seresnet50"),
    ("SEResNeXt", 50, "seresnext50_32x4d"),
]


@pytest.mark.parametrize(
    ("family", "depth", "name"),
    [*TORCHVISION, *(pytest.param(*row, marks=pytest.mark.slow) for row in DEEP)],
)
def test_a_resnet_with_torchvisions_weights_gives_torchvisions_scores(family, depth, name):
    theirs = torchvision().models.get_model(name, weights=None, num_classes=10)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_same_as(getattr(fl.models, family)(depth, nclasses=10), theirs, x)


@pytest.mark.parametrize(("family", "depth", "name"), TIMM)
def test_a_resnet_with_squeeze_and_excitation_gives_timms_scores(family, depth, name):
    torchvision()
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, pretrained=False, num_classes=10)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_same_as(getattr(fl.models, family)(depth, nclasses=10), theirs, x)
