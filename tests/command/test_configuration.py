"""Configurations in TOML: read strictly, and a mistake says what to write."""

import dataclasses
from pathlib import Path

import pytest

import fluxlike as fl
from fluxlike.command.config import (
    Cnn,
    Csv,
    ImageFolder,
    Mlp,
    Output,
    Torchvision,
    Training,
    configured,
    read_configuration,
)
from fluxlike.learning.precision import DTYPES

IMAGES = """
[data]
kind = "image_folder"
path = "imagenette/train"
size = 64
batch_size = 16
workers = 2
validation = "imagenette/val"

[model]
kind = "torchvision:resnet18"

[training]
epochs = 5
lr = 1
schedule = "constant"
jit = true

[output]
folder = "/runs/1"
"""
TABLE = '[data]\nkind = "csv"\npath = "iris.csv"\ntarget = "species"\n[model]\nkind = "mlp"\n'


def read(tmp_path, text):
    (tmp_path / "run.toml").write_text(text)
    return read_configuration(tmp_path / "run.toml")


def test_every_setting_is_read_and_paths_start_at_the_folder_of_the_file(tmp_path):
    run = read(tmp_path, IMAGES)
    assert run.data == ImageFolder(
        "image_folder",
        tmp_path / "imagenette/train",
        size=64,
        batch_size=16,
        workers=2,
        validation=tmp_path / "imagenette/val",
    )
    assert run.model == Torchvision("torchvision:resnet18")
    assert run.model.name == "resnet18"
    assert run.training == Training(epochs=5, lr=1.0, schedule="constant", jit=True)
    assert isinstance(run.training.lr, float)
    assert run.output == Output(Path("/runs/1"))


def test_what_is_left_out_has_a_default(tmp_path):
    run = read(tmp_path, TABLE)
    assert run.data == Csv("csv", tmp_path / "iris.csv", "species")
    assert run.model == Mlp("mlp")
    assert run.training == Training()
    assert run.output == Output(tmp_path / "run")


def test_lists_become_tuples(tmp_path):
    run = read(tmp_path, TABLE.replace("[model]", 'leave_out = ["id"]\n[model]') + "hidden = [8, 4]\n")
    assert run.data.leave_out == ("id",)
    assert run.model.hidden == (8, 4)
    cnn = read(tmp_path, IMAGES.replace('"torchvision:resnet18"', '"cnn"\nchannels = [4]\ndropout = 0'))
    assert cnn.model == Cnn("cnn", (4,), 0.0)


def test_a_configuration_can_not_be_changed(tmp_path):
    run = read(tmp_path, TABLE)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.training.lr = 2


@pytest.mark.parametrize("rule", ["Adam", "AdamW", "Lion", "Momentum", "Nesterov", "RMSProp", "Descent"])
def test_every_rule_that_is_offered_is_there(tmp_path, rule):
    assert read(tmp_path, f'{TABLE}[training]\nrule = "{rule}"').training.rule == rule
    getattr(fl, rule)(0.1)


@pytest.mark.parametrize("precision", DTYPES)
def test_every_precision_of_a_learner_is_offered_by_its_word(tmp_path, precision):
    assert read(tmp_path, f'{TABLE}[training]\nprecision = "{precision}"').training.precision == precision


def training(line):
    return f"{TABLE}[training]\n{line}\n"


MISTAKES = {
    "misspelt": (training("epoch = 3"), r"[training] has no key 'epoch'; did you mean epochs? its keys are"),
    "dashes": (
        TABLE.replace("[model]", "batch-size = 3\n[model]"),
        "[data] of kind 'csv' has no key 'batch-size'; did you mean batch_size?",
    ),
    "elsewhere": (TABLE + "lr = 0.1", "[model] of kind 'mlp' has no key 'lr'; there is [training] lr;"),
    "unknown": (training("colour = 3"), "[training] has no key 'colour'; its keys are epochs, lr, rule"),
    "other kind": (
        TABLE.replace("[model]", "size = 3\n[model]"),
        "[data] of kind 'csv' has no key 'size'; there is [data] size; its keys are kind, path, target",
    ),
    "text": (
        training('epochs = "ten"'),
        "[training] epochs is 'ten' (a string); expected a whole number of at least 1: how often",
    ),
    "truth": (training("epochs = true"), "epochs is true (a truth value); expected a whole number"),
    "share of epochs": (training("epochs = 1.5"), "epochs is 1.5 (a number); expected a whole number"),
    "none": (training("epochs = 0"), "epochs is 0 (a whole number); expected a whole number of at least 1"),
    "rate": (training("lr = 0"), "[training] lr is 0 (a whole number); expected a number above 0"),
    "infinite": (training("lr = inf"), "lr is inf (a number); expected a number above 0"),
    "NaN": (training("lr = nan"), "lr is nan (a number)"),
    "choice": (
        training('schedule = "onecycle"'),
        """schedule is 'onecycle' (a string); expected "one_cycle", "cosine" or "constant": how""",
    ),
    "precision": (
        training('precision = "float16"'),
        """precision is 'float16' (a string); expected "float32", "bf16" or "fp16": in what""",
    ),
    "device": (training('device = "tpu"'), "device is 'tpu' (a string); expected a device of torch"),
    "device number": (training('device = "cpu:x"'), "device is 'cpu:x'"),
    "list": (
        TABLE + "hidden = [8, 0]",
        "hidden is [8, 0] (a list); expected a list of whole numbers",
    ),
    "validation": (
        TABLE.replace("[model]", "validation = 1\n[model]"),
        "[data] validation is 1 (a whole number); expected a share above 0 and below 1, or a path in quotes",
    ),
    "missing": (
        TABLE.replace('target = "species"', ""),
        "[data] lacks target, the column to predict; expected a text in quotes",
    ),
    "no kind": (TABLE.replace('kind = "csv"', ""), '[data] lacks kind: expected "image_folder" or "csv"'),
    "kind": (
        TABLE.replace('"csv"', '"imagefolder"'),
        """[data] kind is 'imagefolder'; expected "image_folder" or "csv"; did you mean "image_folder"?""",
    ),
    "kind of numbers": (TABLE.replace('"mlp"', "3"), "[model] kind is 3; expected"),
    "no name": (IMAGES.replace(":resnet18", ":"), "[model] kind is 'torchvision:' (a string); expected"),
    "section": (f"{TABLE}[trainig]\n", "there is no section [trainig]; did you mean [training]?"),
    "sections": (
        f"{TABLE}[logs]\n",
        "there is no section [logs]; the sections are [data], [model]",
    ),
    "no section": ("lr = 1\n" + TABLE, "the key 'lr' stands in no section; there is [training] lr"),
    "no table": (f"output = 3\n{TABLE}", "output is 3; expected a section, which starts by [output]"),
    "no model": (
        TABLE.partition("[model]")[0],
        'there is no section [model]; write one, with kind = "cnn" or kind = "mlp" or',
    ),
    "images of a table": (
        TABLE.replace('"mlp"', '"cnn"'),
        '"cnn", which takes images, and [data] kind',
    ),
    "channels": (
        IMAGES.replace("size = 64", "channels = 2"),
        "[data] channels is 2; expected 3 for colours",
    ),
    "grey": (IMAGES.replace("size = 64", "channels = 1"), "which takes 3 channels, and [data] channels is 1"),
    "target": (
        TABLE.replace("[model]", 'leave_out = ["species"]\n[model]'),
        "[data] target is 'species', which leave_out holds too",
    ),
    "syntax": ("[data\n", "is no TOML: Expected ']' at the end of a table declaration (at line 1, column 6)"),
    "twice": (TABLE + 'kind = "mlp"', "is no TOML: Cannot overwrite a value"),
    "deep": ("x = " + "[" * 100_000, "is "),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_names_the_key_what_was_found_and_what_is_expected(tmp_path, name):
    text, message = MISTAKES[name]
    with pytest.raises(ValueError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(str(tmp_path / "run.toml"))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_text_file_is_an_error(tmp_path):
    (tmp_path / "run.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is no text in UTF-8"):
        read_configuration(tmp_path / "run.toml")
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_configuration(tmp_path / "none.toml")
    with pytest.raises(ValueError, match="is a folder"):
        read_configuration(tmp_path)


def test_tables_may_come_from_elsewhere():
    run = configured(
        {"data": {"kind": "csv", "path": "a", "target": "b"}, "model": {"kind": "mlp"}}, Path("/x")
    )
    assert run.data.path == Path("/x/a")
