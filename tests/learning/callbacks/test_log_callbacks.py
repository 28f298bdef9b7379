"""The callbacks that write to logs: what they write, and no row doubled or lost by a resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.callbacks.log_histograms import LogGradients, LogHistograms
from fluxlike.learning.callbacks.log_hyperparams import LogHyperParams
from fluxlike.learning.callbacks.log_metrics import LogMetrics
from fluxlike.learning.callbacks.log_visualization import LogVisualization
from fluxlike.learning.history.table import Table
from fluxlike.learning.logs import CSVLog, JSONLinesLog, TensorBoardLog

torch.manual_seed(0)
X, Y = torch.randn(20, 4), torch.randint(3, (20,))
EVERY = 2


def model():
    with fl.seeded(fl.Key(1)):
        return fl.Chain(fl.Dense(4, 5, fl.relu), fl.Dropout(0.5), fl.Dense(5, 3))


def data(shuffle=True):
    return fl.DataLoader((X, Y), batch_size=4, shuffle=shuffle), fl.DataLoader((X, Y), batch_size=8)


def learner(*callbacks, key=None, **options):
    options.setdefault("progress", False)
    key = fl.Key(3) if key is None else key
    rule = options.pop("rule", fl.Adam(0.05))
    options.setdefault("data", data())
    batches = options.pop("data")
    loss = fl.losses.logitcrossentropy
    return fl.Learner(model(), batches, rule, loss, callbacks=callbacks, key=key, **options)


def picture(run):
    """Something that draws, and has numbers of the model in it."""
    noise = torch.rand(3, 4, 4) * 0.01
    return (noise + run.model.layers[0].weight.detach().sigmoid()[:4, :4]).clamp(0, 1)


def loggers(folder, tensorboard=False, gradients=True):
    """All of them, sharing logs."""
    logs = [JSONLinesLog(folder / "run.jsonl")]
    if tensorboard:
        logs.append(TensorBoardLog(folder / "events"))
    callbacks = [
        LogHyperParams(*logs, purpose="test"),
        LogMetrics(*logs, CSVLog(folder / "run.csv"), every=EVERY),
        LogHistograms(*logs, every=3),
        fl.callbacks.Scheduler(lr=fl.schedules.Exp(0.1, 0.9)),
        fl.callbacks.Checkpointer(folder / "checkpoints", every=5),
    ]
    if gradients:
        callbacks.append(LogGradients(*logs, every=4, where=".layers[2]"))
    if tensorboard:
        callbacks.append(LogVisualization(logs[-1], f=picture))
    return callbacks


class Leave(fl.Callback):
    """Ends a fit by an error after some steps of all phases, when all others have had the step."""

    after = (fl.Callback,)

    def __init__(self, steps, how=None):
        self.steps, self.how, self.taken = steps, how, 0

    def step_end(self, run):
        self.taken += 1
        if self.taken == self.steps:
            raise ZeroDivisionError


def of_tensorboard(folder):
    """What TensorBoard shows, without times."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sizes = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    found = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    tags = found.Tags()
    shown = {f"scalar {tag}": [(e.step, e.value) for e in found.Scalars(tag)] for tag in tags["scalars"]}
    for tag in tags["histograms"]:
        shown[f"histogram {tag}"] = [(e.step, str(e.histogram_value)) for e in found.Histograms(tag)]
    for tag in tags["images"]:
        shown[f"image {tag}"] = [(e.step, e.encoded_image_string) for e in found.Images(tag)]
    return shown


def content(folder):
    return (folder / "run.jsonl").read_text(), list(Table.from_csv(folder / "run.csv"))


def steps_of(rows, name):
    return [row["step"] for row in rows if name in row]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run that nothing has ended."""
    folder = tmp_path_factory.mktemp("whole")
    fl.fit(learner(*loggers(folder)), 3)
    return folder


def test_losses_metrics_and_scheduled_rates_are_written(whole):
    rows = content(whole)[1]
    assert steps_of(rows, "step/loss") == steps_of(rows, "step/learning_rate") == list(range(2, 16, 2))
    assert steps_of(rows, "training/loss") == steps_of(rows, "validation/loss") == [5, 10, 15]
    assert [row["epoch"] for row in rows if "epoch" in row] == [1, 2, 3]
    again = fl.fit(learner(fl.callbacks.Scheduler(lr=fl.schedules.Exp(0.1, 0.9))), 3)
    by_step = {row["step"]: row for row in again.history.steps}
    for row in rows:
        if "step/loss" in row:
            assert row["step/loss"] == by_step[row["step"]]["loss"]
            assert row["step/learning_rate"] == by_step[row["step"]]["learning_rate"]
    assert [r["validation/loss"] for r in rows if "epoch" in r] == again.history["validation", "loss"]


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(6, 24))
def test_a_run_that_was_left_anywhere_and_resumed_has_written_what_one_run_writes(
    steps, whole, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("left")
    with pytest.raises(fl.CallbackError, match=r"Leave\.step_end"):
        fl.fit(learner(*loggers(folder), Leave(steps)), 3)
    fl.fit(learner(*loggers(folder)), 3, resume=True)
    assert content(folder) == content(whole)


@pytest.mark.parametrize("steps", [7, 9, 13, 16, 23])
def test_tensorboard_shows_every_step_once_after_a_resume(steps, tmp_path):
    pytest.importorskip("tensorboard")
    whole, left = tmp_path / "whole", tmp_path / "left"
    whole.mkdir(), left.mkdir()
    fl.fit(learner(*loggers(whole, tensorboard=True)), 3)
    with pytest.raises(fl.CallbackError):
        fl.fit(learner(*loggers(left, tensorboard=True), Leave(steps)), 3)
    fl.fit(learner(*loggers(left, tensorboard=True)), 3, resume=True)
    wanted = of_tensorboard(whole / "events")
    assert of_tensorboard(left / "events") == wanted
    assert [step for step, _ in wanted["image picture"]] == [5, 10, 15]
    assert [step for step, _ in wanted["histogram gradients/layers[2].weight"]] == [4, 8, 12]
    assert [step for step, _ in wanted["histogram parameters/layers[0].bias"]] == [3, 6, 9, 12, 15]


KILLED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
import os, signal, test_log_callbacks as t, fluxlike as fl
class Kill(fl.Callback):
    after = (fl.Callback,)
    def step_end(self, run):
        if run.step == {kill} and run.phase == "training":
            os.kill(os.getpid(), signal.SIGKILL)
callbacks = [c for c in t.loggers(Path({folder!r})) if not isinstance(c, fl.callbacks.Checkpointer)]
saving = fl.callbacks.Checkpointer({folder!r} + "/checkpoints", every={every}, background=False)
fl.fit(t.learner(*callbacks, saving, Kill()), 3)
"""


@pytest.mark.parametrize(("kill", "every"), [(4, 3), (12, 5)])
def test_a_run_that_was_killed_has_written_what_one_run_writes_once_it_is_resumed(
    kill, every, whole, tmp_path
):
    path = [os.path.dirname(__file__), os.path.dirname(os.path.dirname(fl.__file__))]
    code = KILLED.format(path=path, folder=str(tmp_path), kill=kill, every=every)
    code = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n{code}"  # or the bits differ
    killed = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    before = content(tmp_path)[1]
    assert steps_of(before, "training/loss") == list(range(5, kill, 5))
    fl.fit(learner(*loggers(tmp_path)), 3, resume=True)
    assert content(tmp_path) == content(whole)


def test_a_learner_that_an_error_left_goes_on_in_its_logs(whole, tmp_path):
    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(learner(*loggers(tmp_path), Leave(14)), 3)
    left = caught.value.learner
    fl.fit(left.replace(callbacks=left.callbacks[:-1]), 3 - left.epoch)
    assert content(tmp_path) == content(whole)


def test_epochs_in_several_fits_are_written_as_those_of_one(whole, tmp_path):
    fitted = fl.fit(learner(*loggers(tmp_path)), 1)
    fl.fit(fitted, 2)
    (first, *lines), rows = content(tmp_path)[0].splitlines(), content(tmp_path)[1]
    (wanted_first, *wanted), wanted_rows = content(whole)[0].splitlines(), content(whole)[1]
    assert (lines, rows) == (wanted, wanted_rows)
    assert json.loads(first)["hyperparameters"]["values"]["epochs"] == 1
    assert json.loads(wanted_first)["hyperparameters"]["values"]["epochs"] == 3


def test_a_run_that_begins_anew_is_never_written_over_another(tmp_path):
    fl.fit(learner(LogMetrics(CSVLog(tmp_path / "run.csv"), every=1)))
    before = (tmp_path / "run.csv").read_text()
    with pytest.raises(
        fl.CallbackError,
        match=r"LogMetrics.step_end raised FileExistsError: .* another run .* .after step 1,",
    ):
        fl.fit(learner(LogMetrics(CSVLog(tmp_path / "run.csv"), every=1)))
    assert (tmp_path / "run.csv").read_text() == before


def test_losses_are_not_read_one_by_one(tmp_path, monkeypatch):
    reads = []
    from fluxlike.learning.logs import waiting

    true = waiting.host_numbers
    monkeypatch.setattr(waiting, "host_numbers", lambda values: reads.append(len(values)) or true(values))
    batches = [(X, Y)] * 300
    fl.fit(learner(LogMetrics(CSVLog(tmp_path / "run.csv"), every=1), data=batches))
    assert len(Table.from_csv(tmp_path / "run.csv")) == 300
    assert len([n for n in reads if n]) <= 4


def test_other_numbers_of_a_step_are_written_too(tmp_path):
    class Parts(fl.Step):
        def loss(self, model, batch):
            return {
                "loss": fl.losses.logitcrossentropy(model(batch[0]), batch[1]),
                "ones": 1.0,
                "note": "words",
            }

    logs = LogMetrics(CSVLog(tmp_path / "run.csv"), every=1)
    fl.fit(fl.Learner(model(), [(X, Y)], fl.Adam(), step=Parts(), callbacks=[logs], progress=False))
    (row,) = Table.from_csv(tmp_path / "run.csv")
    assert list(row) == ["step", "step/loss", "step/ones", "training/loss", "training/ones", "epoch"]


def test_logs_are_closed_after_an_error_and_losses_that_waited_are_there(tmp_path):
    log = CSVLog(tmp_path / "run.csv")
    with pytest.raises(fl.CallbackError):
        fl.fit(learner(LogMetrics(log, every=1), Leave(3)))
    assert len(Table.from_csv(tmp_path / "run.csv")) == 3
    assert log._open is None


def test_a_log_that_fails_leaves_a_learner_and_the_error_is_the_first_one(tmp_path):
    class Full(JSONLinesLog):
        def _write(self, row):
            raise OSError(28, "No space left on device")

    with pytest.raises(
        fl.CallbackError, match=r"LogMetrics.epoch_end raised OSError: .* No space left"
    ) as caught:
        fl.fit(learner(LogMetrics(Full(tmp_path / "run.jsonl"))))
    assert caught.value.learner.step == 5


def hyperparameters_of(folder, *callbacks, **options):
    log = LogHyperParams(JSONLinesLog(folder / "run.jsonl"), **options.pop("more", {}))
    fl.fit(learner(log, *callbacks, **options), 2)
    return json.loads((folder / "run.jsonl").read_text().splitlines()[0])["hyperparameters"]


def test_hyperparameters_are_those_of_the_run(tmp_path):
    found = hyperparameters_of(tmp_path, metrics=fl.metrics.accuracy, more={"epochs": "two", "width": 5})
    values = found["values"]
    assert found["metrics"] == [
        "training/loss",
        "training/accuracy",
        "validation/loss",
        "validation/accuracy",
    ]
    assert values.items() >= {
        "model": "Chain", "parameters": 43, "device": "cpu", "loss": "logitcrossentropy", "rule": "Adam",
        "lr": 0.05, "betas": "(0.9, 0.999)", "batch_size": 4, "epochs": "two", "width": 5, "precision": None,
        "jit": False, "key": "Key(3)",
    }.items()  # fmt: skip


def test_hyperparameters_of_chains_schedules_and_rules_by_layer_have_names_of_their_own(tmp_path):
    def rule(path):
        lr = 0.1 if "layers[0]" in path else 0.01
        return fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.WeightDecay(0.25), fl.AdamW(lr, weight_decay=0.5))

    scheduler = fl.callbacks.Scheduler(where=".layers[2]", lr=fl.schedules.Exp(0.1, 0.5))
    values = hyperparameters_of(tmp_path, scheduler, rule=rule)["values"]
    assert values["rule"] == "OptimiserChain ClipGlobalNorm WeightDecay AdamW"
    assert values["lr"] == "0.1, 0.01"
    assert (values["WeightDecay.weight_decay"], values["AdamW.weight_decay"]) == (0.25, 0.5)
    assert values["schedule of lr at .layers[2]"].startswith("Exp(")
    assert not any(" at 0x" in str(value) for value in values.values())


def test_hyperparameters_are_written_once_a_run(tmp_path):
    logs = LogHyperParams(JSONLinesLog(tmp_path / "run.jsonl"))
    fitted = fl.fit(learner(logs))
    fl.fit(fitted, 2)
    assert (tmp_path / "run.jsonl").read_text().count('"hyperparameters"') == 1
    other = LogHyperParams(JSONLinesLog(tmp_path / "other.jsonl"))
    fl.fit(fitted.replace(callbacks=(other,), memory={}))  # a run that begins with a trained model
    assert (tmp_path / "other.jsonl").read_text().count('"hyperparameters"') == 1


def test_histograms_are_of_the_parameters_at_their_places(tmp_path):
    log = JSONLinesLog(tmp_path / "run.jsonl")
    fitted = fl.fit(learner(LogHistograms(log, where=(".layers[0]", ".layers[2].bias"))), 2)
    rows = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    found = [(row["step"], row["histogram"]) for row in rows]
    names = ["parameters/layers[0].weight", "parameters/layers[0].bias", "parameters/layers[2].bias"]
    assert [(step, h["name"]) for step, h in found] == [(step, name) for step in (5, 10) for name in names]
    assert found[3][1]["edges"][0] == fitted.model.layers[0].weight.min().item()
    assert sum(found[3][1]["counts"]) == 20


def test_histograms_of_complex_and_empty_parameters(tmp_path):
    class Two(fl.Step):
        def loss(self, model, batch):
            return {"loss": (model["a"].abs() ** 2).sum()}

    tree = {"a": torch.ones(2, dtype=torch.complex64), "b": torch.ones(0), "c": torch.ones(())}
    logs = LogHistograms(JSONLinesLog(tmp_path / "run.jsonl"))
    fl.fit(fl.Learner(tree, [X], fl.Descent(0.1), step=Two(), callbacks=[logs], defaults=False))
    rows = map(json.loads, (tmp_path / "run.jsonl").read_text().splitlines())
    assert [row["histogram"]["name"] for row in rows] == ["parameters/['a']/absolute", "parameters/['c']"]


def test_histograms_of_gradients_are_those_of_the_step_and_change_nothing(tmp_path):
    seen = {}

    class See(fl.Callback):
        reads = ("grads",)

        def backward_end(self, run):
            seen[run.step + 1] = run.grads.layers[0].weight.clone()

    logs = LogGradients(JSONLinesLog(tmp_path / "run.jsonl"), every=2)
    fitted = fl.fit(learner(logs, See()))
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2] * 4 + [4] * 4
    assert rows[0]["histogram"]["name"] == "gradients/layers[0].weight"
    assert rows[4]["histogram"]["edges"][0] == seen[4].min().item()
    assert fl.tree.allclose(fitted.model, fl.fit(learner()).model, rtol=0, atol=0)


def test_gradients_of_a_compiled_step_are_refused(tmp_path):
    with pytest.raises(ValueError, match="LogGradients listens to backward_end, which lies inside the step"):
        learner(LogGradients(JSONLinesLog(tmp_path / "run.jsonl")), jit=True)


def test_what_a_function_of_pictures_draws_does_not_change_the_run(tmp_path):
    pytest.importorskip("tensorboard")

    class Drawn:
        def __iter__(self):
            return ((torch.rand(4, 4), Y[:4]) for _ in range(3))

    logs = LogVisualization(TensorBoardLog(tmp_path), f=picture, every=1)
    one, two = (fl.fit(learner(*callbacks, data=Drawn())) for callbacks in ((), (logs,)))
    assert fl.tree.allclose(one.model, two.model, rtol=0, atol=0)


def test_pictures_are_made_in_test_mode_without_changing_the_model(tmp_path):
    pytest.importorskip("tensorboard")
    modes = []

    def drawn(run):
        modes.append((fl.training(None), torch.is_grad_enabled(), run.phase, run.metrics["loss"]))
        torch.rand(3)
        return {"first": picture(run), "second": torch.zeros(2, 2)}

    logs = LogVisualization(TensorBoardLog(tmp_path), f=drawn)
    fitted = fl.fit(learner(logs), 2)
    plain = fl.fit(learner(), 2)
    assert fl.tree.allclose(fitted.model, plain.model, rtol=0, atol=0)
    assert [mode[:3] for mode in modes] == [(False, False, "validation")] * 2
    assert [mode[3] for mode in modes] == plain.history["validation", "loss"]
    shown = of_tensorboard(tmp_path)
    assert {name: [step for step, _ in found] for name, found in shown.items()} == {
        "image drawn/first": [5, 10],
        "image drawn/second": [5, 10],
    }


def test_predictions_of_a_batch_are_a_figure_in_the_log(tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    images, classes = torch.rand(4, 1, 4, 4), torch.arange(4) % 3
    logs = LogVisualization(
        TensorBoardLog(tmp_path),
        f=lambda run: fl.show_predictions(run.model, (images, classes)),
        every=2,
        name="seen",
    )
    net = fl.Chain(fl.flatten, fl.Dense(16, 3))
    begun = fl.Learner(
        net, [(images, classes)] * 4, fl.Adam(), fl.losses.logitcrossentropy, callbacks=[logs], progress=False
    )
    fl.fit(begun)
    assert [step for step, _ in of_tensorboard(tmp_path)["image seen"]] == [2, 4]


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda a, b: LogMetrics(), TypeError, r"LogMetrics got no log; write LogMetrics\(TensorBoardLog"),
        (lambda a, b: LogMetrics("run.csv"), TypeError, "takes logs, such as CSVLog.* found 'run.csv'"),
        (lambda a, b: LogMetrics(CSVLog), TypeError, "found the class CSVLog"),
        (lambda a, b: LogMetrics(a, every=0), ValueError, "every=0; write after how many steps"),
        (lambda a, b: LogHistograms(b), TypeError, "LogHistograms writes histograms, and CSVLog keeps"),
        (lambda a, b: LogHistograms(a, every=2.5), ValueError, r"every=2\.5"),
        (lambda a, b: LogGradients(b), TypeError, "LogGradients writes histograms, and CSVLog keeps"),
        (lambda a, b: LogHyperParams(b), TypeError, "writes hyperparameters, and CSVLog keeps scalars"),
        (lambda a, b: LogHyperParams(a, a=[1]), TypeError, "hyperparameter 'a' is a list; write a number"),
        (lambda a, b: LogVisualization(a, f=picture), TypeError, "figures and images, and JSONLinesLog"),
    ],
    ids=["none", "path", "class", "every", "csv", "float", "gradients", "choices", "list", "pictures"],
)
def test_what_can_not_be_logged_is_refused_before_the_run(make, error, says, tmp_path):
    with pytest.raises(error, match=says):
        make(JSONLinesLog(tmp_path / "a"), CSVLog(tmp_path / "b"))


def test_what_is_no_picture_is_refused(tmp_path):
    pytest.importorskip("tensorboard")
    with pytest.raises(ValueError, match=r"a lambda has no name; .* name='predictions'"):
        LogVisualization(TensorBoardLog(tmp_path), f=lambda run: None)
    with pytest.raises(TypeError, match="got f=3; write a function"):
        LogVisualization(TensorBoardLog(tmp_path), f=3)
    logs = LogVisualization(TensorBoardLog(tmp_path), f=lambda run: None, name="p")
    with pytest.raises(fl.CallbackError, match="the function 'p' gave nothing; return a figure"):
        fl.fit(learner(logs))
