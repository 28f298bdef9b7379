"""Patch-based networks against torchvision, timm and transformers, and what they refuse."""

from dataclasses import replace

import pytest
import torch
from torchvision_here import torchvision
from zoo_parity import assert_same_as, on_meta

import fluxlike as fl
from fluxlike.models.convmixer import ConvMixer, ConvMixerConfig
from fluxlike.models.convnext import ConvNeXt, ConvNeXtConfig
from fluxlike.models.g_mlp import SplitGate, gMLP, gMLPConfig
from fluxlike.models.mixers import MixerConfig
from fluxlike.models.mlp_mixer import MLPMixer
from fluxlike.models.patches import ClassToken, PatchEmbedding, Positions
from fluxlike.models.res_mlp import ResMLP, ResMLPConfig
from fluxlike.models.vit import ViT, ViTConfig


def slow(*row):
    return pytest.param(*row, marks=pytest.mark.slow)


def images(size, n=2):
    return torch.randn(n, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def timm_model(name, **options):
    torchvision()
    timm = pytest.importorskip("timm")
    return timm.create_model(name, pretrained=False, num_classes=10, **options)


# Parity


# Two blocks each: ours, and how torchvision or timm makes it.
CONVNEXT = ConvNeXtConfig((1, 1, 2, 1), (8, 16, 24, 32))
PATCHED = {"dim": 32, "depth": 2, "patch_size": 8}
SIZES = {"image_size": 32, "nclasses": 10}


def convnext_of_torchvision():
    made = torchvision().models.convnext
    stages = zip(CONVNEXT.channels, (*CONVNEXT.channels[1:], None), CONVNEXT.depths, strict=True)
    return made.ConvNeXt([made.CNBlockConfig(*stage) for stage in stages], num_classes=10)


def vit_of_torchvision():
    sizes = {"num_layers": 2, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 128}
    return torchvision().models.VisionTransformer(image_size=32, patch_size=8, num_classes=10, **sizes)


def timm_models():
    torchvision()
    return pytest.importorskip("timm").models


def mixer_of_timm(block, ratio=(0.5, 4.0), **layers):
    made = timm_models().mlp_mixer
    layers = {name: getattr(made, layer) for name, layer in {"block_layer": block, **layers}.items()}
    sizes = {"img_size": 32, "patch_size": 8, "num_blocks": 2, "embed_dim": 32, "num_classes": 10}
    return made.MlpMixer(mlp_ratio=ratio, **sizes, **layers)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: ConvNeXt(CONVNEXT, nclasses=10), convnext_of_torchvision),
        (
            lambda: ConvNeXt(CONVNEXT, nclasses=10),
            lambda: timm_models().ConvNeXt(depths=CONVNEXT.depths, dims=CONVNEXT.channels, num_classes=10),
        ),
        (
            lambda: ConvMixer(
                ConvMixerConfig(depth=2, channels=16, kernel_size=5, patch_size=4), nclasses=10
            ),
            lambda: timm_models().ConvMixer(16, 2, kernel_size=5, patch_size=4, num_classes=10),
        ),
        (lambda: MLPMixer(MixerConfig(**PATCHED), **SIZES), lambda: mixer_of_timm("MixerBlock")),
        (
            lambda: ResMLP(ResMLPConfig(**PATCHED), **SIZES),
            lambda: mixer_of_timm("ResBlock", 4, norm_layer="Affine"),
        ),
        (
            lambda: gMLP(gMLPConfig(**PATCHED), **SIZES),
            lambda: mixer_of_timm("SpatialGatingBlock", 6, mlp_layer="GatedMlp"),
        ),
        (lambda: ViT(ViTConfig(num_heads=2, **PATCHED), **SIZES), vit_of_torchvision),
    ],
    ids=["ConvNeXt of torchvision", "ConvNeXt of timm", "ConvMixer", "MLPMixer", "ResMLP", "gMLP", "ViT"],
)
def test_a_small_network_gives_the_scores_of_the_other_library(ours, theirs):
    assert_same_as(ours(), theirs(), images(32))


@pytest.mark.slow
def test_a_convnext_with_torchvisions_weights_gives_torchvisions_scores():
    theirs = torchvision().models.convnext_tiny(weights=None, num_classes=10)
    assert_same_as(on_meta(ConvNeXt, "tiny", nclasses=10), theirs, images(64))


@pytest.mark.parametrize(
    ("make", "which", "name"),
    [
        (ConvNeXt, "atto", "convnext_atto"),
        slow(ConvMixer, (768, 32), "convmixer_768_32"),
    ],
)
def test_a_network_for_images_of_any_size_gives_timms_scores(make, which, name):
    assert_same_as(on_meta(make, which, nclasses=10), timm_model(name), images(64))


@pytest.mark.parametrize(
    ("make", "which", "name"),
    [
        slow(MLPMixer, "small", "mixer_s16_224"),
        slow(ResMLP, 12, "resmlp_12_224"),
        (gMLP, "tiny", "gmlp_ti16_224"),
        (ViT, "tiny", "vit_tiny_patch16_224"),
    ],
)
def test_a_network_for_images_of_one_size_gives_timms_scores(make, which, name):
    theirs = timm_model(name, img_size=32)
    assert_same_as(on_meta(make, which, image_size=32, nclasses=10), theirs, images(32))


def test_a_vit_without_a_token_of_the_class_gives_timms_scores():
    theirs = timm_model(
        "vit_tiny_patch16_224", img_size=32, class_token=False, global_pool="avg", fc_norm=False
    )
    assert_same_as(on_meta(ViT, "tiny", image_size=32, nclasses=10, pool="mean"), theirs, images(32))


def test_an_image_may_be_wider_than_high():
    theirs = timm_model("vit_tiny_patch16_224", img_size=(32, 48))
    x = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    assert_same_as(on_meta(ViT, "tiny", image_size=(32, 48), nclasses=10), theirs, x)


SMALL = ViTConfig(num_heads=2, **PATCHED)


def test_the_published_vits_of_torchvision_name_their_dense_layers_otherwise():
    theirs = vit_of_torchvision()
    published = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): x
        for name, x in theirs.state_dict().items()
    }
    assert set(published) != set(theirs.state_dict())
    ours = ViT(SMALL, image_size=32, nclasses=10)
    both = [fl.models.load_weights(weights, ours) for weights in (published, theirs.state_dict())]
    assert fl.tree.allclose(*both)


@pytest.mark.parametrize("eps", [1e-6, 1e-12])
def test_a_vit_with_transformers_weights_gives_its_scores(eps, tmp_path):
    torchvision()
    transformers = pytest.importorskip("transformers")
    settings = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128, image_size=32,
        patch_size=8, num_labels=10, layer_norm_eps=eps, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(settings)
    theirs.set_attn_implementation("sdpa")  # the eager one computes its softmax in float32
    ours = ViT(replace(SMALL, eps=eps), image_size=32, nclasses=10)
    model = assert_same_as(ours, theirs, images(32), output=lambda y: y.logits)
    theirs.save_pretrained(tmp_path)  # under the names that the published files have
    read = fl.models.load_weights(tmp_path, fl.f64(ours))
    assert torch.equal(read(images(32)), model(images(32)))


# What they are made of


def test_a_backbone_gives_the_token_of_the_class_and_then_the_patches_row_by_row():
    model = ViT(SMALL, image_size=(16, 24))
    x = torch.randn(2, 3, 16, 24)
    tokens = model.backbone(x)
    assert tokens.shape == (2, 7, 32)
    patches = model.backbone["patches"]
    changed = x.clone()
    changed[:, :, 8:, 8:16] += 1  # the second row's second patch
    moved = (patches(changed) != patches(x)).any(-1).any(0)
    assert moved.tolist() == [False, False, False, False, True, False]
    assert torch.equal(model.classifier(tokens), model.classifier["fc"](tokens[:, 0]))
    without = ViT(SMALL, image_size=16, pool="mean")
    tokens = without.backbone(torch.randn(2, 3, 16, 16))
    assert tokens.shape == (2, 4, 32)
    assert torch.equal(without.classifier(tokens), without.classifier["fc"](tokens.mean(1)))


def test_without_positions_a_vit_sees_a_set_of_patches():
    model = ViT(SMALL, image_size=16)
    model = fl.at(model, lambda m: m.backbone["positions"].weight).apply(torch.zeros_like)
    x = torch.randn(2, 3, 16, 16)
    other = torch.cat((x[..., 8:], x[..., :8]), -1)
    torch.testing.assert_close(model(other), model(x))


def test_a_gate_of_gmlp_passes_its_half_at_first():
    gate = gMLP("tiny", image_size=32).backbone["blocks"][0].branch["gate"]
    x = torch.randn(2, 4, 768)
    torch.testing.assert_close(gate(x), x[..., :384], atol=1e-4, rtol=1e-4)


def test_the_stages_of_a_convnext_halve_the_size():
    model, x, sizes = ConvNeXt("atto", nclasses=2), torch.randn(1, 3, 64, 64), {}
    for name, step in zip(model.backbone.names, model.backbone, strict=True):
        x = step(x)
        sizes[name] = tuple(x.shape[1:])
    assert sizes == {
        "stem": (40, 16, 16), "stage1": (40, 16, 16), "down1": (80, 8, 8), "stage2": (80, 8, 8),
        "down2": (160, 4, 4), "stage3": (160, 4, 4), "down3": (320, 2, 2), "stage4": (320, 2, 2),
    }  # fmt: skip


# Wrong use

PATCHES = PatchEmbedding(8, 4, 3, 2)


@pytest.mark.parametrize("make", [ViT, MLPMixer, ResMLP, gMLP])
def test_images_of_another_size_are_refused_with_what_to_write(make):
    config = "small" if make is not ResMLP else 12
    model = make(config, image_size=32, nclasses=2)
    with pytest.raises(fl.LayerError) as info:
        model(torch.zeros(1, 3, 48, 48))
    text = str(info.value)
    assert ".backbone.layers[0]" in text
    assert "takes images of 32×32, found (1, 3, 48, 48)" in text
    assert "image_size=(48, 48)" in text
    assert "size=(32, 32)" in text
    resized = fl.Upsample(size=(32, 32), mode="bilinear")(torch.zeros(1, 3, 48, 48))
    assert model(resized).shape == (1, 2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ViT("basic"), r"ViT\('basic'\).*did you mean 'base'"),
        (lambda: ViT(16), "huge"),
        (lambda: ViT(["base"]), "ViTConfig, found list"),
        (lambda: ViT("tiny", pool="max"), """pool='max': write "class".*"mean\""""),
        (lambda: ViT("tiny", image_size=30), r"whole patches of 16×16; write image_size=\(32, 32\)"),
        (lambda: ViT("tiny", image_size=(32, 40)), r"image_size=\(32, 40\).*write image_size=\(32, 32\)"),
        (lambda: ViT("tiny", image_size="32"), "the height and the width"),
        (lambda: ViT("tiny", image_size=(32, 32, 3)), "the height and the width"),
        (lambda: ViT("tiny", image_size=0), "the height and the width"),
        (lambda: ViT("tiny", patch_size=0), "one whole number above 0"),
        (lambda: ViT("tiny", patch_size=(16, 16)), "patches are square"),
        (lambda: ViT("tiny", dropout=2), "probability"),
        (lambda: MLPMixer("tiny"), "MLPMixer"),
        (lambda: ResMLP(13), "ResMLP"),
        (lambda: gMLP("large"), "gMLP"),
        (lambda: ConvMixer((768, 20)), "ConvMixer"),
        (lambda: ConvNeXt("teeny"), "did you mean 'tiny'"),
        (lambda: PATCHES(torch.zeros(1, 1, 8, 8)), r"\(N, 3, H, W\), found \(1, 1, 8, 8\)"),
        (lambda: PATCHES(torch.zeros(1, 1, 9, 8)), r"\(N, 3, 8, 8\), found \(1, 1, 9, 8\)"),
        (lambda: PATCHES(torch.zeros(3, 8, 8)), r"\(N, 3, 8, 8\), found \(3, 8, 8\)"),
        (lambda: PATCHES("image"), "takes a tensor.*found str"),
        (lambda: ClassToken(4)(torch.zeros(2, 3, 5)), r"\(N, L, 4\), found \(2, 3, 5\)"),
        (lambda: Positions(3, 4)(torch.zeros(2, 4, 4)), r"\(…, 3, 4\), found \(2, 4, 4\)"),
        (lambda: SplitGate(torch.sigmoid)(torch.zeros(2, 3)), r"\(2, 3\); it halves the features"),
        (lambda: SplitGate(torch.sigmoid)([1.0]), "found list"),
        (lambda: SplitGate(3), "callable layer, found 3"),
        (lambda: SplitGate(fl.Dense), r"a layer, found the class Dense; write Dense\(…\)"),
    ],
)  # fmt: skip
def test_wrong_use_says_what_to_write(call, message):
    with pytest.raises((ValueError, TypeError, fl.LayerError), match=message):
        call()


def test_weights_of_another_configuration_name_the_places():
    theirs = vit_of_torchvision().state_dict()
    with pytest.raises(ValueError, match=r"layers\[2\]\.weight is \(17, 32\).*\(5, 32\)") as info:
        fl.models.load_weights(theirs, ViT(SMALL, image_size=16, nclasses=10))
    assert "torchvision" in str(info.value)
    kept = fl.models.load_weights(theirs, ViT(SMALL, image_size=32, nclasses=3), classifier=False)
    assert kept(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
