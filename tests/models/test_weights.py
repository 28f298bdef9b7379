"""What `load_weights` says of weights that do not fit as they are."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from functools import partial

import pytest
import torch
from torchvision_here import torchvision

import fluxlike as fl
from fluxlike.models import weights
from fluxlike.models.misfit import difference
from fluxlike.models.origins import Squeezed

SMALL = fl.models.ResNetConfig((1, 1, 1, 1), bottleneck=False)
SHALLOW = fl.models.ViTConfig(depth=1, dim=768, num_heads=12)


@pytest.fixture(scope="module")
def alexnet():
    """A small AlexNet, and its weights by torchvision's names."""
    config = fl.models.AlexNetConfig((2, 2, 2, 2, 2), hidden=4)
    model = fl.models.AlexNet(config, nclasses=3)
    places = {"conv1": 0, "conv2": 3, "conv3": 6, "conv4": 8, "conv5": 10}
    tensors = {}
    for part, numbers, chain in (
        ("features", places, model.backbone),
        ("classifier", {"fc1": 1, "fc2": 4, "fc3": 6}, model.classifier),
    ):
        for name, i in numbers.items():
            tensors[f"{part}.{i}.weight"] = chain[name].weight + 1
            tensors[f"{part}.{i}.bias"] = chain[name].bias + 1
    return model, tensors


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod."])
def test_a_prefix_of_all_names_is_named_with_the_line_that_strips_it(alexnet, prefix):
    model, tensors = alexnet
    wrapped = {prefix + name: x for name, x in tensors.items()}
    with pytest.raises(ValueError) as error:
        fl.models.load_weights(wrapped, model)
    assert f"each name in the checkpoint begins with '{prefix}'" in str(error.value)
    first, second = str(error.value).splitlines()[-2:]
    scope = {"source": wrapped, "model": model, "load_weights": fl.models.load_weights}
    exec(first.strip(), scope)
    loaded = eval(second.strip(), scope)
    assert fl.tree.allclose(loaded, fl.models.load_weights(tensors, model))


def test_a_prefix_in_a_file_is_stripped_by_the_line_too(alexnet, tmp_path):
    model, tensors = alexnet
    torch.save({f"module.{name}": x for name, x in tensors.items()}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"tensors = fluxlike\.read_checkpoint\(source\)"):
        fl.models.load_weights(tmp_path / "weights.pth", model)


def test_a_prefix_of_some_names_or_of_other_weights_is_no_cause(alexnet):
    model, tensors = alexnet
    some = {f"module.{name}" if "features" in name else name: x for name, x in tensors.items()}
    other = {f"module.{name}": torch.zeros(1) for name in tensors}
    for source in (some, other):
        with pytest.raises(
            ValueError, match="these are not weights of this Classifier as torchvision has them"
        ):
            fl.models.load_weights(source, model)


def test_a_tensor_that_has_to_be_joined_with_others_is_named_where_it_lacks():
    torchvision()
    transformers = pytest.importorskip("transformers")
    settings = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=16,
        patch_size=8, num_labels=3,
    )  # fmt: skip
    theirs = transformers.ViTForImageClassification(settings).state_dict()
    gone = next(name for name in theirs if "key" in name or "k_proj" in name)
    del theirs[gone]
    config = fl.models.ViTConfig(depth=1, dim=16, num_heads=2, patch_size=8)
    with pytest.raises(ValueError) as error:
        fl.models.load_weights(theirs, fl.models.ViT(config, image_size=16, nclasses=3))
    assert f"read as one of transformers, the checkpoint lacks '{gone}'" in str(error.value)


def test_a_network_over_a_backbone_is_told_to_load_that_first():
    backbone = fl.models.ResNet(SMALL)
    for model, line in (
        (fl.models.UNet(backbone), r"UNet\(load_weights\(source, ResNet\(50\)\)"),
        (fl.models.YOLO(backbone, nclasses=2), r"YOLO\(load_weights\(source, ResNet\(50\)\)"),
    ):
        with pytest.raises(TypeError, match=rf"{type(model).__name__} has none, .*{line}"):
            fl.models.load_weights({}, model)
    with pytest.raises(TypeError, match=r"found Chain; for another model write fluxlike\.load_checkpoint"):
        fl.models.load_weights({}, fl.Chain(fl.Dense(2, 2)))


def test_what_prepares_tensors_can_be_pickled_and_compared():
    squeezed = Squeezed("scale$", (1, 2))
    assert pickle.loads(pickle.dumps(squeezed)) == squeezed == Squeezed("scale$", (1, 2))
    found = squeezed({"scale": torch.ones(3, 1, 1), "other": torch.ones(3, 1, 1)})
    assert [tuple(x.shape) for x in found.values()] == [(3,), (3, 1, 1)]


@pytest.fixture
def renamings(monkeypatch):
    """How often each name was renamed."""
    counted, renamed = Counter(), weights.Origin.renamed

    def counting(origin, name, model):
        counted[name] += 1
        return renamed(origin, name, model)

    monkeypatch.setattr(weights.Origin, "renamed", counting)
    return counted


def of_torchvision(name, **options):
    return torchvision().models.get_model(name, weights=None, **options).state_dict()


def test_rules_are_applied_once_a_name_where_the_first_library_fits(renamings):
    theirs = of_torchvision("mobilenet_v2", num_classes=3)
    model = fl.models.MobileNetV2(nclasses=3)
    assert [origin.library for origin in model.origins] == ["torchvision", "timm"]
    fl.models.load_weights(theirs, model)
    assert renamings == Counter(list(theirs))


def test_rules_that_two_libraries_share_are_applied_once_where_nothing_fits(renamings):
    theirs = of_torchvision("resnet18", num_classes=3)
    del theirs["bn1.weight"]
    model = fl.models.ResNet(18, nclasses=3)
    assert [origin.library for origin in model.origins] == ["torchvision", "timm"]
    with pytest.raises(ValueError, match="torchvision or timm has them: 1 tensor of the model is not"):
        fl.models.load_weights(theirs, model)
    assert renamings == Counter(list(theirs))


def test_a_later_library_is_tried_where_the_first_does_not_fit(renamings):
    torchvision()
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("mobilenetv2_100", pretrained=False, num_classes=3).state_dict()
    loaded = fl.models.load_weights(theirs, fl.models.MobileNetV2(nclasses=3))
    assert torch.equal(loaded.backbone["stem"]["conv"].weight, theirs["conv_stem.weight"])
    assert renamings == Counter(2 * list(theirs))


def first_sentence(theirs, model, **options):
    with pytest.raises(ValueError) as error:
        fl.models.load_weights(theirs, model, **options)
    return str(error.value).splitlines()[0]


@pytest.mark.parametrize(
    ("name", "make", "libraries", "said"),
    [
        (
            "resnet50",
            lambda: fl.models.ResNet(18),
            "torchvision or timm",
            "the checkpoint has 3 layers in model.backbone['layer1'] (the model 2), 4 in "
            "model.backbone['layer2'] (2), 6 in model.backbone['layer3'] (2), 3 in model.backbone['layer4'] "
            "(2); 165 tensors of the checkpoint have no place; 24 tensors are of another shape",
        ),
        (
            "resnet50",
            lambda: fl.models.ResNet(101),
            "torchvision or timm",
            "the checkpoint has 6 layers in model.backbone['layer3'] (the model 23); 255 tensors of the "
            "model are not in it",
        ),
        (
            "vit_l_16",
            lambda: fl.models.ViT("base"),
            "torchvision",
            "the checkpoint has 24 layers in model.backbone['blocks'] (the model 12); 144 tensors of the "
            "checkpoint have no place; 151 tensors are of another shape, most with 1024 where the model has "
            "768",
        ),
        (
            "efficientnet_b4",
            lambda: fl.models.EfficientNet("b0"),
            "torchvision",
            "the checkpoint has 2 layers in model.backbone['stage1'] (the model 1), 4 in "
            "model.backbone['stage2'] (2), 4 in model.backbone['stage3'] (2), 6 in model.backbone['stage4'] "
            "(3) and others in 3 places more; 299 tensors of the checkpoint have no place; 310 tensors are "
            "of another shape",
        ),
    ],
    ids=["deeper", "less deep", "wider", "deeper everywhere"],
)
def test_the_first_sentence_says_what_a_checkpoint_has_more_or_less_than_the_model(
    name, make, libraries, said
):
    head = f"these are not weights of this Classifier as {libraries} has them: "
    with torch.device("meta"):
        assert first_sentence(of_torchvision(name), make()) == head + said


def test_layers_of_another_network_are_not_counted():
    with torch.device("meta"):
        said = first_sentence(of_torchvision("vgg16"), fl.models.VGG(11))
    assert said == (
        "these are not weights of this Classifier as torchvision has them; nearest are torchvision's names: "
        "14 tensors of the model are not in it; 24 tensors of the checkpoint have no place"
    )


def test_layers_of_a_tuple_are_counted_too():
    small, deep = (
        fl.models.GPTConfig(depth=depth, dim=8, num_heads=2, vocabulary=5, context=4) for depth in (1, 3)
    )
    theirs = fl.to_torch(fl.models.GPT(deep)).state_dict()
    theirs = {re.sub("^blocks", "h", name): x for name, x in theirs.items() if name.startswith("blocks")}
    said = first_sentence(theirs, fl.models.GPT(small))
    assert "the checkpoint has 3 layers in model.blocks (the model 1); " in said


def test_layers_in_layers_that_are_counted_are_not():
    def of(*counts):
        return fl.Chain(*(fl.Chain(*(fl.Dense(2, 2) for _ in range(n))) for n in counts))

    theirs = fl.to_torch(of(2, 3, 1)).state_dict()
    names = dict(zip(theirs, theirs, strict=True))
    model = of(1, 3)
    said = difference(fl.match_checkpoint(theirs, model), names, model)
    assert said.startswith("the checkpoint has 3 layers in model (the model 2); 4 tensors of the checkpoint")
    model = of(1, 3, 2)
    said = difference(fl.match_checkpoint(theirs, model), names, model)
    assert said.startswith("the checkpoint has 2 layers in model[0] (the model 1), 1 in model[2] (2); ")


def test_a_norms_count_of_batches_is_not_a_tensor_without_a_place():
    theirs = of_torchvision("resnet18")
    model = fl.f64(fl.models.ResNet(18))
    with pytest.raises(ValueError) as error:
        fl.models.load_weights(theirs, model)
    first, *_, last = str(error.value).splitlines()
    where = "torch.float32 where the model has torch.float64"
    assert first.endswith(f": 102 tensors are of another dtype, {where}")
    assert last == "cast=True converts to the model's dtype"
    fl.models.load_weights(theirs, model, cast=True)
    alone = {**theirs, "other.num_batches_tracked": torch.tensor(0)}
    assert "1 tensor of the checkpoint has no place" in first_sentence(alone, fl.models.ResNet(18))


@pytest.mark.parametrize("inchannels", [1, 2, 5])
@pytest.mark.parametrize(
    ("name", "make", "place"),
    [
        ("resnet18", partial(fl.models.ResNet, 18), "'conv1.weight'"),
        ("mobilenet_v2", fl.models.MobileNetV2, "'features.0.0.weight'"),
        (
            "vit_b_16",
            partial(fl.models.ViT, fl.models.ViTConfig(depth=1, dim=768, num_heads=12)),
            "'conv_proj",
        ),
    ],
)
def test_a_stem_of_other_channels_is_an_error_with_lines_that_give_the_same_scores(
    name, make, place, inchannels
):
    theirs = of_torchvision(name)
    if name == "vit_b_16":
        theirs = {k: x for k, x in theirs.items() if "encoder_layer_" not in k or "encoder_layer_0." in k}
    before = dict(theirs)
    model = make(inchannels=inchannels)
    with pytest.raises(ValueError) as error:
        fl.models.load_weights(theirs, model)
    first, found, advice, *lines = str(error.value).splitlines()
    assert first.endswith(f": 1 tensor is of another shape, 3 where the model has {inchannels}")
    path = found.split()[0]
    assert ", 3, " in found
    assert f", {inchannels}, " in found
    assert advice.startswith(f"{path} takes images of 3 channels in the checkpoint, of {inchannels} channel")
    assert "make the model with inchannels=3, or sum the kernel" in advice
    assert place in lines[1]
    scope = {"source": theirs, "model": model, "load_weights": fl.models.load_weights}
    exec("\n".join(line.strip() for line in lines[:-1]), scope)
    loaded = eval(lines[-1], scope)
    assert all(theirs[name] is x for name, x in before.items())
    grey = torch.randn(1, 1, 224, 224, generator=torch.Generator().manual_seed(0))
    wanted = fl.models.load_weights(theirs, make(inchannels=3))(grey.expand(-1, 3, -1, -1))
    scores = loaded(grey.expand(-1, inchannels, -1, -1))
    assert torch.allclose(scores, wanted, atol=1e-5 * float(wanted.abs().max()))


def test_other_channels_and_other_classes_are_told_apart(tmp_path):
    theirs = of_torchvision("resnet18")
    torch.save({"ema": theirs}, tmp_path / "weights.pth")
    model = fl.models.ResNet(18, inchannels=4, nclasses=3)
    with pytest.raises(ValueError) as error:
        fl.models.load_weights(tmp_path / "weights.pth", model, part="ema")
    lines = str(error.value).splitlines()
    assert "  tensors = dict(fluxlike.read_checkpoint(source, part='ema'))" in lines
    assert lines[-1] == "classifier=False leaves the model its own classifier"
    with pytest.raises(ValueError) as error:
        fl.models.load_weights(theirs, model, classifier=False)
    assert str(error.value).endswith("\n  load_weights(tensors, model)")


def test_a_kernel_of_other_inputs_among_other_faults_is_no_stem():
    theirs = of_torchvision("resnet18")
    theirs["layer1.0.conv1.weight"] = theirs["layer1.0.conv1.weight"][:, :3]
    del theirs["bn1.weight"]
    with pytest.raises(ValueError, match=r"make the model in the configuration of the checkpoint$"):
        fl.models.load_weights(theirs, fl.models.ResNet(18))


@pytest.mark.parametrize("cut", [lambda x: x[:, :, :3, :3], lambda x: x[:, :1, :3, :3], lambda x: x[:32]])
def test_a_stem_that_differs_in_more_than_its_inputs_is_another_configuration(cut):
    theirs = of_torchvision("resnet18")
    theirs["conv1.weight"] = cut(theirs["conv1.weight"])
    with pytest.raises(ValueError, match=r"make the model in the configuration of the checkpoint$"):
        fl.models.load_weights(theirs, fl.models.ResNet(18))


def test_load_weights_says_what_names_can_not_tell():
    assert "tf_efficientnet_b0" in fl.models.load_weights.__doc__
    assert "resnetblur50" in fl.models.load_weights.__doc__
