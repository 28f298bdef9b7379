"""UNet over backbones of many forms."""

import pytest
import torch
from torch import nn

import fluxlike as fl
from fluxlike.models.blocks import conv_norm
from fluxlike.models.pyramid import stages
from fluxlike.models.residual import Residual
from fluxlike.models.resnet import ResNetConfig
from fluxlike.models.unet import Segmenter, UNet


def conv(*channels, **settings):
    return fl.Conv((3, 3), *channels, fl.relu, pad=1, **settings)


def vgg():
    """Blocks that end with their pool, so that the maps before it are in them."""
    pool = fl.MaxPool((2, 2))
    return fl.Chain(
        block1=fl.Chain(conv(3, 4), conv(4, 5), pool),
        block2=fl.Chain(conv(5, 6), pool),
        block3=fl.Chain(conv(6, 7), pool),
    )


def residual():
    return fl.models.ResNet(ResNetConfig((1, 1, 1, 1), bottleneck=False))


def patches():
    """Shrinks by four at once, then by two with a norm before."""
    return fl.Chain(
        conv_norm(3, 3, 6, stride=4),
        Residual(conv(6, 6)),
        fl.Chain(fl.BatchNorm(6), conv(6, 8, stride=2)),
    )


def channels_last():
    """Normalises with the channels last, as ConvNeXt does, before it shrinks the maps."""

    def norm():
        return {"last": features_last, "norm": fl.LayerNorm(8), "first": features_first}

    return fl.Chain(
        stem=fl.Chain(conv=conv(3, 8, stride=4), **norm()),
        down=fl.Chain(**norm(), conv=conv(8, 12, stride=2)),
        stage=Residual(conv(12, 12)),
    )


def features_last(x):
    return x.movedim(1, -1)


def features_first(x):
    return x.movedim(-1, 1)


def without_padding():
    """Loses a border at each convolution, as Inception does."""
    return fl.Chain(
        fl.Conv((3, 3), 3, 4, fl.relu, stride=2),
        fl.Conv((3, 3), 4, 4, fl.relu),
        fl.MaxPool((3, 3), stride=2),
        fl.Conv((3, 3), 4, 8, fl.relu),
    )


BACKBONES = {f.__name__: f for f in (vgg, residual, patches, channels_last, without_padding)}
every_backbone = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


def images(height=32, width=32, n=2, channels=3):
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "channels", "strides"),
    [
        (vgg, [5, 6, 7, 7], [1, 2, 4, 8]),
        (residual, [3, 64, 64, 128, 256, 512], [1, 2, 4, 8, 16, 32]),
        (patches, [3, 6, 8], [1, 4, 8]),
        (channels_last, [3, 8, 12], [1, 4, 8]),
        (without_padding, [3, 4, 8], [1, 2, 4]),
    ],
)
def test_a_backbone_is_cut_where_its_maps_shrink(backbone, channels, strides):
    found = stages(backbone(), 3, "test")
    assert [stage.channels for stage in found] == channels
    assert [stage.stride for stage in found] == strides


@every_backbone
def test_the_stages_one_after_another_are_the_backbone(backbone):
    whole = backbone()
    y = x = images(64, 48)
    for stage in stages(whole, 3, "test"):
        y = stage.layers(y)
        assert y.shape[1] == stage.channels
    whole = whole.backbone if isinstance(whole, fl.models.Classifier) else whole
    assert torch.equal(y, whole(x))
    assert sum(len(fl.trainables(s.layers)) for s in stages(whole, 3, "test")) == len(fl.trainables(whole))


def test_a_nested_chain_is_taken_apart_only_where_maps_would_be_lost():
    found = stages(vgg(), 3, "test")
    names = [("block1_0", "block1_1"), ("block1_2", "block2_0"), ("block2_1", "block3_0"), ("block3_1",)]
    assert [len(stage.layers) for stage in found] == [*map(len, names)]
    resnet = stages(residual(), 3, "test")
    assert [stage.layers.names for stage in resnet[1:]] == [
        ("conv1",), ("maxpool", "layer1"), ("layer2",), ("layer3",), ("layer4",),
    ]  # fmt: skip
    named = fl.Chain(stem=fl.Chain(conv=conv(3, 4), pool=fl.MaxPool((2, 2))), top=conv(4, 8))
    assert [s.layers.names for s in stages(named, 3, "test")] == [("stem_conv",), ("stem_pool", "top")]


@every_backbone
@pytest.mark.parametrize("size", [(64, 64), (45, 70), (33, 31)])
def test_the_output_has_the_size_of_the_image(backbone, size):
    model = UNet(backbone(), nclasses=3)
    assert model(images(*size)).shape == (2, 3, *size)


@every_backbone
def test_every_parameter_is_reached_by_the_gradient(backbone):
    def loss(model, x, y):
        return fl.losses.logitcrossentropy(model(x), y)

    model = UNet(backbone(), nclasses=3)
    labels = torch.randint(3, (2, 40, 36), generator=torch.Generator().manual_seed(1))
    grads = fl.gradient(loss, model, images(40, 36), labels)
    reached = [path for path, g in fl.trainables(grads, paths=True) if g.any()]
    assert reached == [path for path, _ in fl.trainables(model, paths=True)]
    assert not fl.find_nonfinite(grads)


def test_encoder_decoder_and_head_are_the_children():
    model = UNet(residual(), nclasses=3)
    assert isinstance(model, Segmenter)
    assert list(fl.children(model)) == ["encoder", "decoder", "head"]


def test_the_backbone_keeps_its_weights():
    backbone = residual()
    ours, theirs = (fl.trainables(x) for x in (UNet(backbone).encoder, backbone.backbone))
    assert all(a is b for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("channels", [None, (9, 7, 5)])
def test_the_decoder_joins_each_map_with_the_next_larger_one(channels):
    """The decoder by hand, with torch's own operations."""
    model = UNet(vgg(), nclasses=2, channels=channels)
    x = images(21, 34)
    x1 = model.encoder[0](x)
    x2 = model.encoder[1](x1)
    x3 = model.encoder[2](x2)
    y = model.encoder[3](x3)
    widths = []
    for block, skip in zip(model.decoder, (x3, x2, x1), strict=True):
        wide = nn.functional.interpolate(y, size=skip.shape[2:])
        y = block.convs(torch.cat((wide, skip), 1))
        widths.append(y.shape[1])
    assert torch.equal(model(x), model.head(y))
    assert widths == [*(channels or (64, 32, 16))]


def test_the_last_block_sees_the_image_where_the_backbone_has_no_map_of_its_size():
    model = UNet(residual())
    assert len(model.encoder[0]) == 0
    assert model.decoder[-1].convs["conv1"]["conv"].weight.shape[1] == 32 + 3


@pytest.mark.slow
def test_jit_gives_what_eager_gives():
    model = UNet(patches(), nclasses=2)
    x = images(20, 28)
    torch.testing.assert_close(fl.jit(lambda m, x: m(x))(model, x), model(x))


def test_a_summary_shows_the_parts():
    text = str(fl.summary(UNet(patches()), (1, 3, 32, 32)))
    assert "(1, 1, 32, 32)" in text
    assert ".decoder[1].convs" in text


def test_a_unet_learns_to_label_pixels():
    x = images(16, 16, n=4)
    y = (x.mean(1, keepdim=True) > 0).float()

    def loss(model):
        return fl.losses.logitbinarycrossentropy(model(x), y)

    model = UNet(fl.Chain(conv(3, 8), fl.MaxPool((2, 2)), conv(8, 16)))
    state = fl.setup(fl.Adam(1e-2), model)
    for _ in range(40):
        model, state = fl.update(state, model, fl.gradient(loss, model))
    assert ((model(x) > 0) == (y > 0)).float().mean() > 0.95


def test_a_unet_is_saved_and_loaded(tmp_path):
    model, other = UNet(vgg()), UNet(vgg())
    fl.save(tmp_path / "unet.safetensors", model)
    x = images()
    assert torch.equal(fl.load(tmp_path / "unet.safetensors", like=other)(x), model(x))


def test_models_of_other_channels_and_dtypes_are_cut_too():
    model = UNet(fl.f64(fl.Chain(conv(1, 4, stride=2), conv(4, 4))), inchannels=1)
    assert model.encoder[1][0].weight.dtype is torch.float64
    assert fl.f64(model)(images(channels=1).double()).shape == (2, 1, 32, 32)


def tokens(x):
    return x.flatten(2).mT


@pytest.mark.parametrize(
    ("backbone", "settings", "error", "match"),
    [
        (
            fl.Chain(patch=conv(3, 8, stride=4), tokens=tokens),
            {},
            ValueError,
            r"tokens \(tokens\) gives the shape",
        ),
        (
            fl.Chain(conv(3, 4), fl.Chain(fl.MaxPool((2, 2)), fl.flatten)),
            {},
            ValueError,
            r"1 \(Chain\) gives the",
        ),
        (fl.Chain(conv(3, 8), conv(8, 8)), {}, ValueError, "keep the size of the image.*ResNet"),
        (
            fl.Chain(first=conv(1, 8)),
            {},
            ValueError,
            r"first \(Conv\) failed.*\(1, 3, 544, 544\).*inchannels=",
        ),
        (conv(3, 8), {}, TypeError, "takes a Chain of layers or a Classifier.*found Conv"),
        (vgg(), {"channels": (8, 4)}, ValueError, r"shrink 3 times, to strides 2, 4, 8; write 3 numbers"),
    ],
)
def test_a_backbone_without_a_pyramid_is_an_error_that_says_so(backbone, settings, error, match):
    with pytest.raises(error, match=match):
        UNet(backbone, **settings)


def test_a_decoder_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="one block of the decoder fewer"):
        Segmenter([fl.identity], [fl.identity], fl.identity)


def test_an_error_of_a_layer_names_its_place():
    model = UNet(vgg())
    with pytest.raises(fl.LayerError, match=r"\.encoder\[0\]\.layers\[0\]"):
        model(images(channels=4))
