"""AlexNet, VGG, SqueezeNet and DenseNet against torchvision, and their wrong use."""

from functools import partial

import pytest
import rows_cnn
import torch
from torch import nn
from torchvision_here import torchvision
from zoo_parity import assert_same_as, assert_same_scores, on_meta

import fluxlike as fl
from fluxlike.models.alexnet import AlexNet, AlexNetConfig
from fluxlike.models.densenet import DenseNet, DenseNetConfig
from fluxlike.models.squeezenet import SqueezeNet, SqueezeNetConfig
from fluxlike.models.vgg import VGG, VGGS, VGGConfig

#: The smallest of each family; `test_published_sizes` has all.
MODELS = {
    "alexnet": AlexNet,
    "vgg11": partial(VGG, 11),
    "vgg11_bn": partial(VGG, 11, batchnorm=True),
    "squeezenet1_0": partial(SqueezeNet, "1.0"),
    "squeezenet1_1": partial(SqueezeNet, "1.1"),
    "densenet121": partial(DenseNet, 121),
}


def images(size=64, dtype=torch.float64):
    return torch.randn(2, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "name",
    ["squeezenet1_0", "squeezenet1_1", "densenet121", pytest.param("alexnet", marks=pytest.mark.slow)],
)
def test_a_network_with_torchvisions_weights_gives_torchvisions_scores(name):
    theirs = torchvision().models.get_model(name, weights=None, num_classes=10)
    assert_same_as(on_meta(MODELS[name], nclasses=10), theirs, images())


@pytest.mark.slow
def test_a_vgg_with_torchvisions_weights_gives_torchvisions_scores():
    """Of 129 million weights, so that a step of training is left to those of few channels."""
    theirs = torchvision().models.vgg11(weights=None, num_classes=10, init_weights=False)
    assert_same_scores(on_meta(VGG, 11, nclasses=10), theirs, images())


def theirs_in_small(name, features, channels, places):
    """torchvision's AlexNet or VGG whose classifier, of 50 to 120 million numbers, is small.

    Args:
        name: of the network.
        features: its convolutions.
        channels: of the features that the classifier gets.
        places: of the Dense layers in the classifier.
    """
    with torch.device("meta"):
        theirs = torchvision().models.get_model(name)
    for place, sizes in zip(places, [(channels, 16), (16, 16), (16, 10)], strict=True):
        theirs.classifier[place] = nn.Linear(*sizes)
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    theirs.features = features
    return theirs


@pytest.mark.parametrize("batchnorm", [False, True])
@pytest.mark.parametrize("depth", VGGS)
def test_a_vgg_of_few_channels_gives_torchvisions_scores(depth, batchnorm):
    stages = tuple((n, channels // 8) for n, channels in VGGS[depth].stages)
    row = [step for n, channels in stages for step in (*[channels] * n, "M")]
    features = torchvision().models.vgg.make_layers(row, batchnorm)
    theirs = theirs_in_small("vgg11", features, 64 * 49, (0, 3, 6))
    model = VGG(VGGConfig(stages, hidden=16), batchnorm=batchnorm, nclasses=10)
    assert_same_as(model, theirs, images())


def test_an_alexnet_of_few_hidden_features_gives_torchvisions_scores():
    with torch.device("meta"):
        features = torchvision().models.alexnet().features
    theirs = theirs_in_small("alexnet", features.to_empty(device="cpu"), 256 * 36, (1, 4, 6))
    assert_same_as(AlexNet(AlexNetConfig(hidden=16), nclasses=10), theirs, images())


def test_a_densenet_with_timms_weights_gives_timms_scores():
    torchvision()
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("densenet121", pretrained=False, num_classes=10)
    assert_same_as(on_meta(DenseNet, 121, nclasses=10), theirs, images())


def test_a_densenet_takes_the_names_of_torchvisions_first_checkpoints():
    model, other = (DenseNet(rows_cnn.SMALL_DENSENET, nclasses=10) for _ in range(2))
    theirs = torchvision().models.DenseNet(8, (2, 3), 16, num_classes=10)
    state = theirs.state_dict()
    old = {name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): x for name, x in state.items()}
    old = {name.replace("norm2.", "norm.2.").replace("conv2.", "conv.2."): x for name, x in old.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    both = fl.models.load_weights(state, model), fl.models.load_weights(old, other)
    x = images(32, torch.float32)
    assert torch.equal(both[0](x), both[1](x))
    assert torch.allclose(both[0](x), theirs.eval()(x), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_the_smallest_images_are_as_published(name):
    with torch.device("meta"):
        model = MODELS[name]()
    size = max(torchvision().models.get_model_weights(name).DEFAULT.meta["min_size"])
    assert model(torch.empty(1, 3, size, size, device="meta")).shape == (1, 1000)
    with pytest.raises(fl.LayerError, match=r"^\.backbone.*Pool.* got a tensor of shape \(1, \d+, \d, \d\)"):
        model(torch.empty(1, 3, size - 1, size - 1, device="meta"))


@pytest.mark.parametrize("model", [VGG(rows_cnn.SMALL_VGG), DenseNet(rows_cnn.SMALL_DENSENET)])
def test_a_step_of_the_backbone_keeps_the_size_or_halves_it(model):
    """So that a UNet can cut it there."""
    x = images(32, torch.float32)
    for step in model.backbone:
        y = step(x)
        assert y.shape[2] in (x.shape[2], x.shape[2] // 2)
        x = y


@pytest.mark.parametrize("rate", [0.0, 0.2])
def test_a_densenet_drops_after_each_convolution_but_the_first_and_before_the_last_layer(rate):
    model = DenseNet(rows_cnn.SMALL_DENSENET, dropout=rate)
    dropouts = repr(model.backbone).count("Dropout(0.2)")
    assert dropouts == (11 if rate else 0)  # 5 layers of two, and one transition
    assert repr(model.classifier).count(f"Dropout({rate})") == 1


def test_a_dense_layer_keeps_what_it_gets():
    model = DenseNet(rows_cnn.SMALL_DENSENET)
    x = torch.randn(2, 16, 5, 5)
    y = model.backbone["block1"](x)
    assert y.shape == (2, 32, 5, 5)
    assert torch.equal(y[:, :16], x)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: VGG(12), ValueError, r"VGG\(12\): write one of 11, 13, 16, 19, or a VGGConfig"),
        (lambda: VGG((1, 2)), ValueError, r"VGG\(\(1, 2\)\): write one of 11"),
        (lambda: VGG([1]), TypeError, "VGG takes one of 11, 13, 16, 19, or a VGGConfig, found list"),
        (lambda: DenseNet(122), ValueError, r"DenseNet\(122\): write one of 121, 161, 169, 201"),
        (lambda: SqueezeNet("1_1"), ValueError, r"write one of '1.0', '1.1'.*did you mean '1.1'"),
        (lambda: SqueezeNet(1.1), ValueError, r"SqueezeNet\(1.1\): write one of '1.0', '1.1'"),
        (lambda: AlexNet(10), TypeError, r"AlexNet takes an AlexNetConfig, found 10;.*AlexNet\(nclasses=…\)"),
        (lambda: AlexNetConfig((1, 2)), ValueError, r"channels=\(1, 2\)\): write a tuple of 5 whole numbers"),
        (lambda: SqueezeNetConfig(3, 64, (1, 10)), ValueError, r"pools=\(1, 10\).*from 1 to 9"),
        (lambda: DenseNet(rows_cnn.SMALL_DENSENET, dropout=2), ValueError, "write a probability"),
        (lambda: DenseNet(rows_cnn.SMALL_DENSENET, dropout=None), TypeError, "write a probability"),
        (lambda: VGG(rows_cnn.SMALL_VGG, dropout=-1), ValueError, "write a probability"),
        (lambda: DenseNetConfig((2, 0)), ValueError, r"depths=\(2, 0\)"),
    ],
)
def test_a_wrong_configuration_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_images_of_other_channels_are_refused_at_the_first_layer():
    model = DenseNet(rows_cnn.SMALL_DENSENET, inchannels=1)
    with pytest.raises(fl.LayerError, match=r"^\.backbone\.layers\[0\].*\(2, 3, 32, 32\)"):
        model(images(32, torch.float32))


@pytest.mark.parametrize(
    ("theirs", "model", "message"),
    [
        ("vgg11_bn", partial(VGG, 11), r"\.backbone\.layers\[2\]\.layers\[0\]\.weight is missing"),
        ("vgg11", partial(VGG, 11, batchnorm=True), r"layers\[0\]\.layers\[1\]\.running_var is missing"),
        ("vgg11", partial(VGG, 13), r"\.backbone\.layers\[0\]\.layers\[1\]\.weight is missing"),
        ("squeezenet1_0", partial(SqueezeNet, "1.1"), r"\.backbone\.layers\[5\].* is missing"),
        ("densenet121", partial(DenseNet, 169), r"\.backbone\.layers\[6\]\.layers\[24\].* is missing"),
        ("vgg11", AlexNet, r"\(64, 3, 3, 3\) in the checkpoint, \(64, 3, 11, 11\) in the model"),
    ],
)
def test_weights_of_another_configuration_are_refused(theirs, model, message):
    with torch.device("meta"):
        state = torchvision().models.get_model(theirs).state_dict()
        model = model()
    with pytest.raises(ValueError, match=message):
        fl.models.load_weights(state, model)
