"""Inception networks, Xception and Res2Net against torchvision and timm."""

from itertools import pairwise

import pytest
import torch
from rows_inception import SMALL
from torchvision_here import torchvision
from zoo_parity import assert_same_as, on_meta

import fluxlike as fl
from fluxlike.models.googlenet import GoogLeNet
from fluxlike.models.inception import InceptionConfig, Times
from fluxlike.models.inception_resnet import InceptionResNetV2
from fluxlike.models.inception_v3 import InceptionV3
from fluxlike.models.inception_v4 import InceptionV4
from fluxlike.models.res2net import MultiScale, Res2Net, Res2NetConfig, Res2NeXt
from fluxlike.models.xception import Xception

slow = pytest.mark.slow


def tv(name, **settings):
    return torchvision().models.get_model(name, weights=None, init_weights=False, **settings)


def timm(name, **settings):
    torchvision()
    return pytest.importorskip("timm").create_model(name, pretrained=False, **settings)


def images(size, n=2):
    return torch.randn(n, 3, size, size, dtype=torch.float64)


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [(GoogLeNet, "googlenet", 32), (InceptionV3, "inception_v3", 75)],
)
def test_an_inception_network_with_torchvisions_weights_gives_its_scores(family, name, size):
    assert_same_as(on_meta(family, nclasses=10), tv(name, num_classes=10, aux_logits=False), images(size))


@pytest.mark.parametrize(
    ("family", "name", "size"), [(GoogLeNet, "googlenet", 32), (InceptionV3, "inception_v3", 75)]
)
def test_tensors_of_auxiliary_classifiers_are_dropped(family, name, size):
    theirs = tv(name, num_classes=10, aux_logits=True).double().eval()
    ours = fl.models.load_weights(theirs.state_dict(), fl.f64(family(nclasses=10)))
    x = images(size)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)


def test_googlenet_has_as_many_parameters_as_torchvision_publishes():
    published = torchvision().models.GoogLeNet_Weights.IMAGENET1K_V1.meta["num_params"]
    assert sum(x.numel() for x in fl.trainables(on_meta(GoogLeNet))) == published


def test_inception_v3_has_as_many_parameters_as_torchvision_publishes_with_the_auxiliary_classifier():
    models = torchvision().models
    aux = sum(x.numel() for x in models.inception.InceptionAux(768, 1000).parameters())
    published = models.Inception_V3_Weights.IMAGENET1K_V1.meta["num_params"]
    assert sum(x.numel() for x in fl.trainables(on_meta(InceptionV3))) == published - aux


@pytest.mark.parametrize(
    ("family", "name", "size"),
    [
        pytest.param(InceptionV3, "inception_v3", 75, marks=slow),
        pytest.param(InceptionV4, "inception_v4", 75, marks=slow),
        pytest.param(InceptionResNetV2, "inception_resnet_v2", 75, marks=slow),
        pytest.param(Xception, "legacy_xception", 64, marks=slow),
    ],
)
def test_an_inception_network_with_timms_weights_gives_its_scores(family, name, size):
    assert_same_as(on_meta(family, nclasses=10), timm(name, num_classes=10), images(size))


@pytest.mark.parametrize(
    ("family", "depth", "name"),
    [
        (Res2Net, (50, 14, 8), "res2net50_14w_8s"),
        pytest.param(Res2NeXt, 50, "res2next50", marks=slow),
    ],
)
def test_a_res2net_with_timms_weights_gives_its_scores(family, depth, name):
    assert_same_as(on_meta(family, depth, nclasses=10), timm(name, num_classes=10), images(64))


@pytest.mark.parametrize(
    "family", [GoogLeNet, InceptionV3, InceptionV4, InceptionResNetV2, Xception, Res2Net]
)
def test_a_backbone_can_be_cut_wherever_the_size_halves(family):
    sizes, x = [128], torch.zeros(1, 3, 128, 128)
    with torch.no_grad():
        for step in family(nclasses=1).backbone:
            x = step(x)
            sizes.append(x.shape[-1])
    pairs = [(a, b) for a, b in pairwise(sizes) if b < 0.7 * a]
    assert len(pairs) == 5
    assert all(2 * b + 1 >= a - 1 for a, b in pairs)


def test_residual_blocks_of_an_inception_network_are_left_out_at_rising_rates():
    backbone = InceptionResNetV2(SMALL["InceptionResNetV2"], nclasses=2, drop_path=0.2).backbone
    blocks = [*backbone["blocks35"], backbone["block8"]]
    assert [block.drop_path.p for block in blocks] == [0.0, 0.1, 0.2]
    assert [block.branch["scale"].factor for block in blocks] == [0.17, 0.17, 1.0]
    assert isinstance(blocks[0].branch["scale"], Times)


def test_scales_are_convolved_with_what_the_part_before_gave():
    layer = MultiScale(6, 3)
    x = torch.randn(2, 6, 5, 5)
    first, second, third = x.chunk(3, 1)
    a = layer.convs[0](first)
    assert torch.equal(layer(x), torch.cat([a, layer.convs[1](a + second), third], 1))
    alone = MultiScale(6, 3, stride=2, apart=True)
    wanted = [alone.convs[0](first), alone.convs[1](second), alone.last(third)]
    assert torch.equal(alone(x), torch.cat(wanted, 1))
    assert alone(x).shape == (2, 6, 3, 3)


def test_an_image_that_is_too_small_is_refused_with_the_place():
    with pytest.raises(fl.LayerError, match=r"\.backbone\.layers\[3\].*window of MaxPool covers \(3, 3\)"):
        InceptionV3(nclasses=2)(torch.zeros(1, 3, 8, 8))


def test_weights_of_another_network_are_refused_with_the_names():
    resnet = torchvision().models.resnet18(weights=None).state_dict()
    with pytest.raises(ValueError, match=r"as torchvision has them(.|\n)*is missing"):
        fl.models.load_weights(resnet, GoogLeNet())
    with pytest.raises(ValueError, match=r"as timm has them(.|\n)*convs\[0\]\.layers\[0\]\.weight is"):
        fl.models.load_weights(timm("resnet50").state_dict(), Res2Net(50))


def test_weights_of_other_scales_are_refused_with_the_shapes():
    theirs = timm("res2net50_14w_8s").state_dict()
    with pytest.raises(ValueError, match=r"\(112, 64, 1, 1\) in the checkpoint, \(104, 64, 1, 1\) in"):
        fl.models.load_weights(theirs, Res2Net(50))


@pytest.mark.parametrize("family", [GoogLeNet, InceptionV3, InceptionV4, InceptionResNetV2])
def test_a_configuration_that_is_none_is_refused(family):
    with pytest.raises(TypeError, match=f"{family.__name__} takes an InceptionConfig, found 50"):
        family(50)


def test_other_wrong_configurations_are_refused():
    with pytest.raises(TypeError, match="Xception takes an XceptionConfig, found 71"):
        Xception(71)
    with pytest.raises(ValueError, match=r"Res2Net\(18\): write one of 50, 101, 152"):
        Res2Net(18)
    with pytest.raises(ValueError, match="scale=1"):
        Res2Net(Res2NetConfig((1, 1), scale=1))
    with pytest.raises(ValueError, match="32 channels into scale=5 parts"):
        MultiScale(32, 5)
    with pytest.raises(ValueError, match="apart=True"):
        MultiScale(32, 4, stride=2)
    with pytest.raises(ValueError, match="MultiScale"):
        MultiScale(32, 4)(torch.zeros(1, 30, 4, 4))
    with pytest.raises(ValueError, match="at least one layer"):
        GoogLeNet(InceptionConfig({"block": {}}))
