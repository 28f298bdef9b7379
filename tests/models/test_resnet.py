"""Residual networks against torchvision and timm."""

import pytest
import torch
from torchvision_here import torchvision
from zoo_parity import assert_same_as, on_meta

import fluxlike as fl

#: The smallest of each family; `test_published_sizes` has all.
TORCHVISION = [
    ("ResNet", 18, "resnet18"),
    ("ResNet", 50, "resnet50"),
    ("ResNeXt", 50, "resnext50_32x4d"),
    pytest.param("WideResNet", 50, "wide_resnet50_2", marks=pytest.mark.slow),
]
TIMM = [
    ("SEResNet", 18, "seresnet18"),
    ("SEResNet", 50, "seresnet50"),
    ("SEResNeXt", 50, "seresnext50_32x4d"),
]


@pytest.mark.parametrize(("family", "depth", "name"), TORCHVISION)
def test_a_resnet_with_torchvisions_weights_gives_torchvisions_scores(family, depth, name):
    theirs = torchvision().models.get_model(name, weights=None, num_classes=10)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_same_as(on_meta(getattr(fl.models, family), depth, nclasses=10), theirs, x)


@pytest.mark.parametrize(("family", "depth", "name"), TIMM)
def test_a_resnet_with_squeeze_and_excitation_gives_timms_scores(family, depth, name):
    torchvision()
    timm = pytest.importorskip("timm")
    theirs = timm.create_model(name, pretrained=False, num_classes=10)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    assert_same_as(on_meta(getattr(fl.models, family), depth, nclasses=10), theirs, x)
