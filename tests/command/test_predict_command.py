"""``python -m fluxlike predict``: what it prints and writes, and what it refuses."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training_runs import configuration, draw_shapes, iris, write_table

import fluxlike as fl
from fluxlike.command import model_file
from fluxlike.command.main import main
from fluxlike.command.model_file import read_model
from fluxlike.data.readers.image_folder import ImageFolder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A model of images, one of classes of rows, one of values of rows."""
    folder = tmp_path_factory.mktemp("runs")
    draw_shapes(folder / "shapes")
    write_table(folder / "diabetes.csv", "diabetes")
    data = {"kind": "image_folder", "path": "shapes", "size": 32, "batch_size": 16}
    paths = [
        configuration(folder, data, {"kind": "cnn", "channels": [16, 32, 64]}, "images", epochs=8, lr=0.01),
        iris(folder, output="rows"),
        iris(folder, output="values", data={"path": "diabetes.csv", "task": "regression"}),
    ]
    for path in paths:
        assert main(["train", path]) == 0
    return folder


@pytest.fixture
def model(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return {name: f"{name}/model.safetensors" for name in ("images", "rows", "values")}


def told(capsys, *arguments):
    assert main(["predict", *arguments]) == 0
    return capsys.readouterr().out


def problem(capsys, *arguments):
    assert main(["predict", *arguments]) == 1
    found = capsys.readouterr()
    assert found.out == ""
    return found.err


def test_rows_are_a_table_of_classes_and_probabilities(model, capsys):
    lines = told(capsys, model["rows"], "iris.csv").splitlines()
    assert lines[0].split() == ["file", "row", "class", "probability"]
    assert lines[1].split()[:3] == ["iris.csv", "1", "setosa"]
    assert len(lines) == 151
    with open("iris.csv") as file:
        wanted = [row["target"] for row in csv.DictReader(file)]
    right = sum(line.split()[2] == name for line, name in zip(lines[1:], wanted, strict=True))
    assert right > 140


def test_probabilities_are_those_of_the_model(model, capsys):
    found = json.loads(told(capsys, model["rows"], "iris.csv", "--json", "--top", "9"))
    _, tree = read_model(model["rows"])
    x = fl.data.read_csv("iris.csv", "target").features
    wanted = tree(x).softmax(1)
    names = ("setosa", "versicolor", "virginica")
    for row, probabilities in zip(found, wanted.tolist(), strict=True):
        given = {pair["class"]: pair["probability"] for pair in row["classes"]}
        assert given == pytest.approx(dict(zip(names, probabilities, strict=True)), abs=1e-6)
        assert list(given.values()) == sorted(given.values(), reverse=True)
    assert [row["row"] for row in found] == list(range(1, 151))


def test_the_model_of_a_file_is_that_of_the_last_epoch(model, runs):
    about, tree = read_model(model["images"])
    data = ImageFolder(runs / "shapes", size=32)
    with fl.mode("test"):
        right = sum(int(tree(x[None]).argmax()) == int(y) for x, y in (data[i] for i in range(120)))
    assert right / 120 > 0.9
    assert about.run.data.size == 32


def test_images_are_files_and_folders_with_all_that_is_below(model, capsys):
    found = json.loads(told(capsys, model["images"], "shapes/cross", "shapes/circle/000.png", "--json"))
    files = [Path(row["file"]).as_posix() for row in found]
    assert files == [*(f"shapes/cross/{i:03}.png" for i in range(40)), "shapes/circle/000.png"]
    names = [row["classes"][0]["class"] for row in found]
    assert names.count("cross") > 35
    assert len(told(capsys, model["images"], "shapes").splitlines()) == 121


def test_an_image_has_one_prediction_alone_and_among_others(model, capsys):
    alone = json.loads(told(capsys, model["images"], "shapes/cross/007.png", "--json"))
    among = json.loads(told(capsys, model["images"], "shapes/cross", "--json"))[7]
    assert alone[0]["classes"][0]["probability"] == pytest.approx(
        among["classes"][0]["probability"], abs=1e-5
    )


def test_top_shows_the_likeliest_classes_and_no_more_than_there_are(model, capsys):
    head = told(capsys, model["images"], "shapes/cross/000.png", "--top", "2").splitlines()[0]
    assert head.split() == ["file", "class", "probability", "class", "2", "probability", "2"]
    head = told(capsys, model["images"], "shapes/cross/000.png", "--top", "50").splitlines()[0]
    assert "class 3" in head
    assert "class 4" not in head


def test_values_are_in_the_unit_of_the_target(model, capsys):
    found = json.loads(told(capsys, model["values"], "diabetes.csv", "--json"))
    with open("diabetes.csv") as file:
        wanted = [float(row["target"]) for row in csv.DictReader(file)]
    error = sum(abs(row["value"] - y) for row, y in zip(found, wanted, strict=True)) / len(wanted)
    assert error < 50
    assert told(capsys, model["values"], "diabetes.csv").splitlines()[0].split() == ["file", "row", "value"]
    assert "--top is for classes" in problem(capsys, model["values"], "diabetes.csv", "--top", "2")


def test_a_csv_file_holds_what_the_table_shows(model, capsys, tmp_path):
    out = tmp_path / "out.csv"
    assert told(capsys, model["rows"], "iris.csv", "--csv", str(out), "--top", "2") == f"{out}: 150 rows\n"
    with open(out) as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "row", "class", "probability", "class 2", "probability 2"]
    assert rows[0]["class"] == "setosa"
    assert float(rows[0]["probability"]) > 0.9
    assert "there is no folder" in problem(
        capsys, model["rows"], "iris.csv", "--csv", str(tmp_path / "a" / "b")
    )


def test_columns_may_be_in_another_order_and_others_beside_them(model, capsys, tmp_path):
    with open("iris.csv") as file:
        rows = list(csv.DictReader(file))
    other = tmp_path / "other.csv"
    with open(other, "w", newline="") as file:
        writer = csv.DictWriter(file, ["note", *reversed(rows[0])])
        writer.writeheader()
        writer.writerows({"note": "n/a", **row} for row in rows)
    one, two = (json.loads(told(capsys, model["rows"], str(path), "--json")) for path in ("iris.csv", other))
    assert [row["classes"] for row in one] == [row["classes"] for row in two]


def test_a_table_without_the_columns_names_theirs_and_its_own(model, capsys):
    err = problem(capsys, model["rows"], "diabetes.csv")
    assert "diabetes.csv lacks 'sepal length (cm)'" in err
    assert "it has 'age', 'sex'" in err


def test_a_damaged_image_is_named(model, capsys, tmp_path):
    whole = Path("shapes/cross/000.png").read_bytes()
    for name, content in {"half.png": whole[: len(whole) // 2], "text.png": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        assert str(tmp_path / name) in problem(capsys, model["images"], "shapes/cross", str(tmp_path / name))


def test_inputs_of_another_kind_are_told(model, capsys, tmp_path):
    assert "there is no file or folder nowhere" in problem(capsys, model["images"], "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no image" in problem(capsys, model["images"], str(tmp_path / "empty"))
    assert "iris.csv is no BMP" in problem(capsys, model["images"], "iris.csv")
    assert "is a folder" in problem(capsys, model["rows"], "shapes")
    assert "lacks" in problem(capsys, model["rows"], "shapes/cross/000.png")


def test_a_file_that_train_did_not_write_is_no_model(model, capsys, tmp_path):
    fl.save(tmp_path / "other.safetensors", {"model": fl.Dense(2, 1)})
    torch.save({}, tmp_path / "other.pt")
    checkpoint = next(Path("rows/checkpoints").glob("*.safetensors"))
    for path in (tmp_path / "other.safetensors", tmp_path / "other.pt", checkpoint, Path("iris.csv")):
        err = problem(capsys, str(path), "iris.csv")
        assert "not one that python -m fluxlike train wrote" in err
        assert "model.safetensors in the output folder of a run" in err
    assert "there is no file" in problem(capsys, "none.safetensors", "iris.csv")
    assert "is a folder" in problem(capsys, "rows", "iris.csv")


def test_a_damaged_model_is_a_problem_in_a_line(model, capsys, tmp_path):
    whole = Path(model["rows"]).read_bytes()
    for place in range(8, len(whole), 97):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        (tmp_path / "m.safetensors").write_bytes(damaged)
        assert problem(capsys, str(tmp_path / "m.safetensors"), "iris.csv").count("\n") == 1
    (tmp_path / "m.safetensors").write_bytes(whole[:-40])
    assert problem(capsys, str(tmp_path / "m.safetensors"), "iris.csv").count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ('"hidden": [32]', '"hidden": [1000000000000, 1000000000000]', ""),
        ('"hidden": [32]', '"hidden": [33]', "has the shape"),
        ('"hidden": [32]', '"hidden": "x"', "what can't be read"),
        ('"version": 1', '"version": 2', "it is of version 2"),
        ('"classes": ["setosa"', '"classes": [3', "what can't be read"),
        ('"columns": [', '"columns": ["more", ', ""),
        ('"kind": "mlp"', '"kind": "cnn"', "what can't be read"),
    ],
)
def test_a_model_that_says_it_is_another_one_is_refused(model, capsys, tmp_path, old, new, text, monkeypatch):
    about, tree = read_model(model["rows"])
    written = model_file._text(about)
    assert old in written
    monkeypatch.setattr(model_file, "_text", lambda about: written.replace(old, new))
    model_file.save_model(tmp_path / "m.safetensors", tree, about)
    err = problem(capsys, str(tmp_path / "m.safetensors"), "iris.csv")
    assert "m.safetensors" in err
    assert text in err
    assert err.count("\n") == 1


def test_a_model_file_is_whole_in_itself_and_tells_nothing_of_the_machine(model, capsys, tmp_path):
    shutil.copy(model["rows"], tmp_path / "m.safetensors")
    assert "setosa" in told(capsys, str(tmp_path / "m.safetensors"), "iris.csv")
    assert str(Path.cwd()).encode() not in Path(model["rows"]).read_bytes()


def test_scores_that_are_not_finite_are_kept(model, tmp_path):
    about, tree = read_model(model["rows"])
    strange = replace(about, scores={"validation loss": float("nan"), "training loss": float("inf")})
    model_file.save_model(tmp_path / "m.safetensors", tree, strange)
    scores = model_file.read_about(tmp_path / "m.safetensors").scores
    assert scores["validation loss"] != scores["validation loss"]
    assert scores["training loss"] == float("inf")


def test_names_from_elsewhere_do_not_move_the_terminal(capsys, tmp_path):
    (tmp_path / "iris.csv").write_text("a,target\n1,x\x1b[31m\n2,y\n3,y\n4,y\n5,x\x1b[31m\n6,y\n")
    assert main(["train", iris(tmp_path, epochs=1)]) == 0
    capsys.readouterr()
    out = told(capsys, str(tmp_path / "run" / "model.safetensors"), str(tmp_path / "iris.csv"), "--top", "2")
    assert "\x1b" not in out
    assert "x\\x1b[31m" in out
