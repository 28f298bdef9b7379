"""``kind = "torchvision:…"``: built by name, with weights of a local file alone."""

import importlib

import pytest
import torch
from torchvision_here import torchvision
from training_runs import configuration, draw_shapes

import fluxlike as fl
from fluxlike.command.config import Torchvision
from fluxlike.command.main import main
from fluxlike.command.model_file import read_about, read_model
from fluxlike.command.torchvision_models import torchvision_model


def test_without_torchvision_the_error_says_what_to_install(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match="pip install torchvision"):
        torchvision_model(Torchvision("torchvision:resnet18"), 32, 3)


def test_a_torchvision_that_does_not_load_beside_this_torch_says_so(monkeypatch):
    def unfit(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", unfit)
    with pytest.raises(ImportError, match="install both from one place"):
        torchvision_model(Torchvision("torchvision:resnet18"), 32, 3)


@pytest.mark.slow
def test_a_model_of_torchvision_is_trained_saved_and_predicts(tmp_path, capsys):
    torchvision()
    draw_shapes(tmp_path / "shapes", each=20)
    data = {"kind": "image_folder", "path": "shapes", "size": 32}
    path = configuration(tmp_path, data, {"kind": "torchvision:resnet18"}, epochs=6, lr=0.001)
    assert main(["train", path]) == 0
    file = tmp_path / "run" / "model.safetensors"
    assert read_about(file).scores["training accuracy"] > 0.9
    assert read_model(file)[1][1].fc.weight.shape == (3, 512)
    assert main(["predict", str(file), str(tmp_path / "shapes" / "cross")]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 20


def test_weights_of_a_file_are_taken_but_for_a_head_of_other_classes(tmp_path):
    vision = torchvision()
    theirs = vision.models.squeezenet1_1(num_classes=7)
    torch.save(theirs.state_dict(), tmp_path / "w.pt")
    model = torchvision_model(Torchvision("torchvision:squeezenet1_1", tmp_path / "w.pt"), 32, 3)
    own, found = fl.to_torch(model).state_dict(), theirs.state_dict()
    differing = [name for name in found if not torch.equal(own[name], found[name])]
    assert differing == ["classifier.1.weight", "classifier.1.bias"]
    same = torchvision_model(Torchvision("torchvision:squeezenet1_1", tmp_path / "w.pt"), 32, 7)
    assert all(torch.equal(x, found[name]) for name, x in fl.to_torch(same).state_dict().items())


def test_weights_of_another_model_are_refused(tmp_path):
    vision = torchvision()
    torch.save(vision.models.squeezenet1_0(num_classes=3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(
        ValueError, match=r"w.pt is of another model than squeezenet1_1: it lacks '|has the shape"
    ):
        torchvision_model(Torchvision("torchvision:squeezenet1_1", tmp_path / "w.pt"), 32, 3)


@pytest.mark.parametrize(
    ("name", "size", "text"),
    [
        ("resnet19", 32, 'did you mean "torchvision:resnet18"'),
        ("vit_b_32", 32, "does not take images of 32 × 32 .*; write another .data. size"),
        ("googlenet", 64, "gives GoogLeNetOutputs in training"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_models_that_do_not_fit_are_told_before_training(name, size, text):
    torchvision()
    with pytest.raises(ValueError, match=text):
        torchvision_model(Torchvision(f"torchvision:{name}"), size, 3)
