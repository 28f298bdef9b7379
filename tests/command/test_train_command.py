"""``python -m fluxlike train``: what it learns, what it leaves in its folder, and what it refuses."""

import csv
import json
import os
import shutil
import warnings

import pytest
import torch
from training_runs import SHAPES, configuration, draw_shapes, iris, write_table

import fluxlike as fl
from fluxlike.command import learners
from fluxlike.command.config import read_configuration
from fluxlike.command.main import main
from fluxlike.command.model_file import read_about, read_model
from fluxlike.command.models import Standardise, spread_of_rows
from fluxlike.command.tasks import task_of
from fluxlike.data.readers.pictures import read_image


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shapes")
    draw_shapes(folder / "shapes")
    return folder


def images(folder, model, data=(), output="run", **training):
    table = {"kind": "image_folder", "path": "shapes", "size": 32, **dict(data)}
    return configuration(folder, table, model, output, **{"epochs": 8, "lr": 0.01, **training})


def problem(capsys, *arguments):
    assert main(arguments) == 1
    return capsys.readouterr().err


def trained(path, capsys):
    assert main(["train", path]) == 0
    return capsys.readouterr()


def test_a_folder_of_images_is_learned_by_the_convolutional_model(shapes, capsys):
    out = trained(images(shapes, {"kind": "cnn", "channels": [16, 32, 64]}), capsys).out
    assert "3 classes, 96 to train on, 24 to validate on" in out
    run = shapes / "run"
    about = read_about(run / "model.safetensors")
    assert about.classes == SHAPES
    assert about.scores["validation accuracy"] > 0.9
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "confusion.png", "history.csv", "model.safetensors", "run.json", "steps.csv",
    ]  # fmt: skip
    assert read_image(run / "confusion.png").shape[0] == 3
    assert out.splitlines()[-1].startswith(f"{run / 'model.safetensors'}: 8 epochs, training loss")


@pytest.mark.parametrize(("name", "least"), [("iris", 0.9), ("wine", 0.9)])
def test_a_table_of_classes_is_learned(tmp_path, capsys, name, least):
    write_table(tmp_path / "iris.csv", name)
    trained(iris(tmp_path), capsys)
    about = read_about(tmp_path / "run" / "model.safetensors")
    assert about.scores["validation accuracy"] > least
    assert about.scores["epochs"] == 20


def test_a_table_of_values_is_learned_in_their_own_unit(tmp_path, capsys):
    write_table(tmp_path / "iris.csv", "diabetes")
    trained(iris(tmp_path, data={"task": "regression"}), capsys)
    scores = read_about(tmp_path / "run" / "model.safetensors").scores
    # a mean has a share of variance of 1, and a mean absolute error of 66
    assert scores["validation loss"] < 0.7
    assert 30 < scores["validation mean_absolute_error"] < 55
    assert not (tmp_path / "run" / "confusion.png").exists()


def test_the_model_standardises_by_mean_and_deviation_of_the_training_part(tmp_path, capsys):
    path = iris(tmp_path, epochs=1)
    trained(path, capsys)
    _, model = read_model(tmp_path / "run" / "model.safetensors")
    split, _ = fl.Key(0).split(2)
    rows, _ = task_of(read_configuration(path), split).training
    wanted = spread_of_rows(rows)
    assert rows.shape == (120, 4)
    assert isinstance(model[0], Standardise)
    torch.testing.assert_close(model[0].mean, rows.mean(0))
    torch.testing.assert_close(model[0].deviation, rows.std(0, correction=0))
    assert torch.equal(model[0].mean, wanted.mean)
    x = model[0](rows)
    torch.testing.assert_close(x.mean(0), torch.zeros(4), atol=1e-5, rtol=0)


def test_a_column_that_never_changes_is_no_division_by_zero():
    spread = spread_of_rows(torch.tensor([[0.1, 1.0]] * 3 + [[0.1, 2.0]]))
    assert spread.deviation[0] == 1
    torch.testing.assert_close(spread.deviation[1].item(), 3**0.5 / 4)


def test_the_history_has_a_row_an_epoch_and_phase_and_a_row_a_step(tmp_path, capsys):
    trained(iris(tmp_path, epochs=3), capsys)
    with open(tmp_path / "run" / "history.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["phase"]) for row in rows] == [
        (str(epoch), phase) for epoch in (1, 2, 3) for phase in ("training", "validation")
    ]
    assert all(0 <= float(row["accuracy"]) <= 1 for row in rows)
    with open(tmp_path / "run" / "steps.csv") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.AdamW([parameter], lr=0.02)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, 0.02, total_steps=12, pct_start=0.25, cycle_momentum=False, final_div_factor=4000
    )
    for rate in rates:
        assert rate == pytest.approx(cycle.get_last_lr()[0], rel=1e-6)
        optimiser.step()
        if rate is not rates[-1]:
            cycle.step()


@pytest.mark.parametrize(
    ("rule", "schedule"),
    [
        ("Adam", "cosine"),
        ("Lion", "constant"),
        ("Momentum", "one_cycle"),
        ("Nesterov", "cosine"),
        ("RMSProp", "constant"),
        ("Descent", "one_cycle"),
    ],
)
def test_every_rule_and_schedule_trains(tmp_path, capsys, rule, schedule):
    lr = 0.1 if rule in ("Momentum", "Nesterov", "Descent") else 0.01
    trained(iris(tmp_path, rule=rule, schedule=schedule, lr=lr, epochs=6), capsys)
    with open(tmp_path / "run" / "steps.csv") as file:
        rows = list(csv.DictReader(file))
    assert float(rows[-1]["loss"]) < 0.8 * float(rows[0]["loss"])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_of_grey_images_is_trained_in_half_precision(shapes, capsys, precision):
    path = images(
        shapes, {"kind": "cnn", "channels": [8, 16]}, {"channels": 1}, output=precision,
        precision=precision, epochs=4,
    )  # fmt: skip
    trained(path, capsys)
    _, model = read_model(shapes / precision / "model.safetensors")
    assert model[1].weight.shape == (8, 1, 3, 3)
    assert all(x.dtype == torch.float32 for x in fl.trainables(model))
    assert read_about(shapes / precision / "model.safetensors").scores["training loss"] < 1


def test_images_may_be_read_by_workers_and_learned_by_a_perceptron(shapes, capsys):
    model = {"kind": "mlp", "hidden": [16], "dropout": 0.1}
    trained(images(shapes, model, {"workers": 1, "size": 16}, output="workers", epochs=2), capsys)
    trained(images(shapes, model, {"size": 16}, output="alone", epochs=2), capsys)
    one, other = (read_model(shapes / name / "model.safetensors")[1] for name in ("workers", "alone"))
    assert fl.tree.allclose(one, other, rtol=0, atol=0)


@pytest.mark.slow
def test_a_compiled_run_learns_too(tmp_path, capsys):
    trained(iris(tmp_path, jit=True), capsys)
    assert read_about(tmp_path / "run" / "model.safetensors").scores["validation accuracy"] > 0.9


def test_a_validation_folder_is_numbered_as_the_training_folder(shapes, capsys):
    draw_shapes(shapes / "held", each=4, seed=1)
    shutil.rmtree(shapes / "held" / "circle")
    model = {"kind": "cnn", "channels": [8]}
    out = trained(images(shapes, model, {"validation": "held"}, output="held_run", epochs=1), capsys).out
    assert "120 to train on, 8 to validate on" in out


def test_a_validation_table_may_have_its_columns_in_another_order(tmp_path, capsys):
    lines = ["a,b,kind", *(f"{i},{-i},{i % 3}" for i in range(12))]
    (tmp_path / "iris.csv").write_text("\n".join(lines))
    (tmp_path / "held.csv").write_text("kind,b,a,note\n2,-5,5,x\n0,-3,3,x\n")
    path = iris(tmp_path, data={"target": "kind", "validation": "held.csv"}, epochs=1)
    trained(path, capsys)
    assert read_about(tmp_path / "run" / "model.safetensors").classes == ("0", "1", "2")
    task = task_of(read_configuration(path), fl.Key(0))
    assert task.validation[0].tolist() == [[5, -5], [3, -3]]
    assert task.validation[1].tolist() == [2, 0]


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path, capsys):
    models = []
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        trained(iris(tmp_path, output=name, seed=seed, epochs=2), capsys)
        models.append(read_model(tmp_path / name / "model.safetensors")[1])
    weights = [model[1].weight for model in models]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_an_epoch_leaves_out_at_most_a_batch_of_one(tmp_path):
    path = iris(tmp_path, data={"batch_size": 17})
    run = read_configuration(path)
    task = task_of(run, fl.Key(0))
    sizes = [len(y) for _, y in learners.loader_of(run, task.training, torch.device("cpu"), shuffle=True)]
    assert sizes == [17] * 7  # of 120
    sizes = [len(y) for _, y in learners.loader_of(run, task.validation, torch.device("cpu"))]
    assert sizes == [17, 13]


def test_a_finished_run_says_so_and_how_to_begin_anew(tmp_path, capsys):
    path = iris(tmp_path, epochs=2)
    trained(path, capsys)
    model = (tmp_path / "run" / "model.safetensors").read_bytes()
    out = trained(path, capsys).out
    assert "has this run, and it is finished; remove the folder to begin anew" in out
    assert "2 epochs, training loss" in out
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == model


def test_a_run_killed_before_its_model_was_saved_ends_by_the_same_command(tmp_path, capsys):
    path = iris(tmp_path, epochs=2)
    trained(path, capsys)
    _, first = read_model(tmp_path / "run" / "model.safetensors")
    (tmp_path / "run" / "model.safetensors").unlink()
    assert "going on from step 8, after 2 epochs" in trained(path, capsys).out
    assert fl.tree.allclose(first, read_model(tmp_path / "run" / "model.safetensors")[1], rtol=0, atol=0)


def test_a_folder_of_another_configuration_names_the_keys_that_differ(tmp_path, capsys):
    trained(iris(tmp_path, epochs=1), capsys)
    err = problem(capsys, "train", iris(tmp_path, epochs=1, lr=0.5, hidden=(8, 8)))
    assert "[model] hidden is [8, 8] and was [32]; [training] lr is 0.5 and was 0.02" in err
    assert f"remove {tmp_path / 'run'} to begin anew" in err
    err = problem(capsys, "train", iris(tmp_path, epochs=1, data={"validation": 0.5}))
    assert "[data] validation is 0.5 and was 0.2" in err


def test_workers_and_device_may_change_and_the_project_may_move(tmp_path, capsys):
    path = iris(tmp_path, epochs=1)
    trained(path, capsys)
    moved = tmp_path.with_name(f"{tmp_path.name}_moved")
    os.rename(tmp_path, moved)
    path = iris(moved, epochs=1, device="cpu", data={"workers": 1})
    assert "it is finished" in trained(path, capsys).out


def test_changed_data_is_no_continuation(tmp_path, capsys):
    path = iris(tmp_path, epochs=1)
    trained(path, capsys)
    (tmp_path / "run" / "model.safetensors").unlink()
    with open(tmp_path / "iris.csv", "a") as file:
        file.write("1,2,3,4,setosa\n")
    err = problem(capsys, "train", path)
    assert "the data is not that with which the run" in err
    assert "training was 120 and is 121" in err


def test_files_of_somebody_else_are_not_written_over(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "history.csv").write_text("mine")
    assert "would be written over" in problem(capsys, "train", iris(tmp_path))
    assert (tmp_path / "run" / "history.csv").read_text() == "mine"


def test_a_damaged_record_is_a_problem_in_a_line(tmp_path, capsys):
    path = iris(tmp_path, epochs=1)
    trained(path, capsys)
    (tmp_path / "run" / "run.json").write_text('{"configuration": 3}')
    assert "run.json can't be read" in problem(capsys, "train", path)


def test_a_refused_configuration_leaves_no_folder(tmp_path, capsys):
    assert "has no column 'species'" in problem(capsys, "train", iris(tmp_path, data={"target": "species"}))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ({"task": "regression"}, "holds text, such as 'setosa'; write task = \"classification\""),
        ({"target": "petal width (cm)", "task": "regression"}, "[data] leave_out names columns"),
        ({"target": "sepal width (cm)", "leave_out": ["target"]}, 'for values write task = "regression"'),
        ({"delimiter": ";"}, "if ';' stands between its cells; write another [data] delimiter"),
        ({"leave_out": ["size"]}, "[data] leave_out: "),
        ({"validation": 0.001}, "150 observations to train on and 0 to validate on"),
        ({"validation": 0.999}, "leaves no row to train on"),
        ({"path": "none.csv"}, "there is no file"),
    ],
)
def test_data_that_does_not_fit_is_told_with_what_to_write(tmp_path, capsys, data, text):
    assert text in problem(capsys, "train", iris(tmp_path, data=data))


def test_classes_of_a_validation_table_that_were_never_seen_are_named(tmp_path, capsys):
    (tmp_path / "iris.csv").write_text("a,kind\n1,0\n2,1\n3,0\n")
    (tmp_path / "held.csv").write_text("a,kind\n1,7\n")
    err = problem(capsys, "train", iris(tmp_path, data={"target": "kind", "validation": "held.csv"}))
    assert "holds '7', which is none of the classes that the model is trained on, '0', '1'" in err
    (tmp_path / "held.csv").write_text("b,kind\n1,1\n")
    err = problem(capsys, "train", iris(tmp_path, data={"target": "kind", "validation": "held.csv"}))
    assert "lacks 'a' of the columns that the model is trained on, 'a'; it has 'b', 'kind'" in err


def test_one_class_is_nothing_to_learn(tmp_path, capsys):
    (tmp_path / "iris.csv").write_text("a,target\n1,x\n2,x\n3,x\n4,x\n")
    assert "has one class, 'x'; there must be two" in problem(capsys, "train", iris(tmp_path))


def test_images_too_small_for_the_convolutions_are_told_before_training(shapes, capsys):
    err = problem(capsys, "train", images(shapes, {"kind": "cnn"}, {"size": 7}, output="small"))
    assert "[data] size is 7, which can be halved 2 times; write fewer, or a size of at least 8" in err


@pytest.mark.parametrize(
    ("hidden", "text"),
    [((10**6, 10**6), "takes 3.638 TiB, which cpu does not have"), ((10**12,) * 2, "64 bits")],
    ids=["large", "huge"],
)
def test_a_model_beyond_all_memory_is_told_in_a_line(tmp_path, capsys, hidden, text):
    err = problem(capsys, "train", iris(tmp_path, hidden=hidden))
    assert err.startswith("fluxlike train: [model] the mlp takes ")
    assert text in err
    assert "write smaller numbers in hidden" in err
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_named_and_the_run_goes_on_once_it_is_mended(shapes, capsys):
    shutil.copytree(shapes / "shapes", shapes / "damaged")
    image = shapes / "damaged" / "cross" / "005.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    path = images(shapes, {"kind": "cnn", "channels": [4]}, {"path": "damaged"}, output="mended", epochs=1)
    err = problem(capsys, "train", path)
    assert err.splitlines()[-1].startswith(f"fluxlike train: {image} is damaged or cut off")
    image.write_bytes(whole)
    trained(path, capsys)


def test_a_loss_that_is_not_finite_names_the_layer(tmp_path, capsys):
    err = problem(capsys, "train", iris(tmp_path, rule="Descent", lr=1e30))
    assert "NonFiniteLoss: the loss is" in err
    assert "the first layer whose output is not finite" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_device_that_is_not_here_is_told(tmp_path, capsys):
    err = problem(capsys, "train", iris(tmp_path, device="cuda:1"))
    assert '[training] device is "cuda:1", which is not here, where there is only the CPU' in err


def test_without_matplotlib_the_run_ends_and_says_what_is_missing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    out = trained(iris(tmp_path, epochs=1), capsys).out
    assert "no confusion.png: it needs matplotlib" in out
    assert (tmp_path / "run" / "model.safetensors").exists()


def test_the_random_state_of_the_process_is_as_it_was(tmp_path, capsys):
    before = torch.get_rng_state()
    trained(iris(tmp_path, epochs=1), capsys)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_record_is_of_the_configuration_and_the_data(tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained(iris(tmp_path, epochs=1), capsys)
    found = json.loads((tmp_path / "run" / "run.json").read_text())
    assert found["configuration"]["[data] path"] == os.path.join("..", "iris.csv")
    assert found["data"]["classes"] == ["setosa", "versicolor", "virginica"]
    assert (found["data"]["training"], found["data"]["validation"]) == (120, 30)
