"""The callbacks that measure and record: weighted by sample, exact after a resume, no copies in a step."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from benchmarks import torchvision_here
from fluxlike.learning.events import LearningError

with contextlib.suppress(ImportError):
    torchvision_here.torchvision()  # which torchmetrics imports

torch.manual_seed(0)
X = torch.randn(50, 6)
Y = torch.randint(3, (50,))
KEY = fl.Key(3)


def model(outputs=3):
    with fl.seeded(fl.Key(1)):
        return fl.Dense(6, outputs)


def learner(data, metrics=(), loss=fl.losses.logitcrossentropy, outputs=3, **options):
    options.setdefault("progress", False)
    return fl.Learner(model(outputs), data, fl.Adam(0.05), loss, metrics=metrics, key=KEY, **options)


def loader(n=50, batch_size=16, shuffle=False, y=Y):
    return fl.DataLoader((X[:n], y[:n]), batch_size=batch_size, shuffle=shuffle)


def validated(metrics, y=Y, loss=fl.losses.logitcrossentropy, outputs=3):
    """A row of validation, and what the model that was validated makes of all data."""
    begun = learner((loader(y=y), loader(y=y)), metrics, loss, outputs)
    fitted = fl.fit(begun)
    return fitted.history.epochs[-1], fitted.model(X).detach(), y


def same_bits(a, b):
    """Whether two histories are equal but for the seconds."""

    def rows(table):
        return [{n: (type(v), v) for n, v in row.items() if n != "seconds"} for row in table]

    return rows(a.epochs) == rows(b.epochs) and rows(a.steps) == rows(b.steps)


def test_loss_and_accuracy_are_those_of_the_whole_though_the_last_batch_is_smaller():
    metrics = pytest.importorskip("sklearn.metrics")
    row, outputs, y = validated(fl.metrics.accuracy)
    assert row["accuracy"] == pytest.approx(metrics.accuracy_score(y, outputs.argmax(1)), abs=1e-7)
    wanted = metrics.log_loss(y, outputs.double().softmax(1), labels=range(3))
    assert row["loss"] == pytest.approx(wanted, rel=1e-6)
    batches = [fl.metrics.accuracy(outputs[i : i + 16], y[i : i + 16]) for i in range(0, 50, 16)]
    assert row["accuracy"] != pytest.approx(float(torch.stack(batches).mean()), abs=1e-3)


def test_metrics_of_torchmetrics_are_those_of_the_whole():
    tm = pytest.importorskip("torchmetrics")
    kinds = {
        "right": tm.classification.MulticlassAccuracy(3, average="micro"),
        "f1": tm.classification.MulticlassF1Score(3),
        "auroc": tm.classification.MulticlassAUROC(3),
        "both": tm.MetricCollection(
            {
                "precision": tm.classification.MulticlassPrecision(3),
                "recall": tm.classification.MulticlassRecall(3),
            }
        ),
    }
    row, outputs, y = validated(kinds)
    for name in ("right", "f1", "auroc"):
        assert row[name] == pytest.approx(float(kinds[name](outputs, y)), abs=1e-6)
    whole = kinds["both"](outputs, y)
    assert row["both_precision"] == pytest.approx(float(whole["precision"]), abs=1e-6)
    assert row["both_recall"] == pytest.approx(float(whole["recall"]), abs=1e-6)


def test_a_regression_has_its_metrics():
    tm = pytest.importorskip("torchmetrics")
    sk = pytest.importorskip("sklearn.metrics")
    y = X[:, :1] * 2 + 0.1
    row, outputs, y = validated([tm.R2Score(), fl.losses.mae], y, fl.losses.mse, 1)
    assert row["R2Score"] == pytest.approx(sk.r2_score(y, outputs), abs=1e-4)
    assert row["mae"] == pytest.approx(sk.mean_absolute_error(y, outputs), rel=1e-5)
    assert row["loss"] == pytest.approx(sk.mean_squared_error(y, outputs), rel=1e-5)


class Parts(fl.Step):
    """A step with numbers of its own."""

    def __init__(self, **more):
        self.more = more

    def loss(self, model, batch):
        x, y = batch
        outputs = model(x)
        loss = fl.losses.logitcrossentropy(outputs, y)
        return {"loss": loss, "size": x.abs().mean(), "per sample": outputs.sum(1), **self.more}


def test_other_numbers_of_a_step_have_their_means_over_samples_in_the_history():
    step = Parts(ones=1, note="words", several=[1.0])
    fitted = fl.fit(learner((loader(), loader()), loss=None, step=step))
    row = fitted.history.epochs[-1]
    assert row["size"] == pytest.approx(X.abs().mean().item(), rel=1e-6)
    assert row["ones"] == 1
    assert list(row) == ["epoch", "phase", "loss", "size", "ones", "seconds"]


def test_metrics_of_a_step_without_outputs_are_an_error_that_says_what_to_write():
    begun = learner(loader(), fl.metrics.accuracy, None, step=Parts())
    with pytest.raises(
        LearningError, match="'accuracy' needs outputs and targets, and the step gives 'loss', "
    ):
        fl.fit(begun)


@pytest.mark.parametrize("name", ["accuracy", "seconds", "epoch", "learning_rate"])
def test_a_number_of_a_step_by_a_name_that_is_taken_is_an_error(name):
    class Whole(Parts):
        def loss(self, model, batch):
            out = super().loss(model, batch)
            return {**out, "outputs": model(batch[0]), "targets": batch[1]}

    begun = learner(loader(), fl.metrics.accuracy, None, step=Whole(**{name: 1.0}))
    with pytest.raises(LearningError, match=f"the step gives a number '{name}', and .* call one of them"):
        fl.fit(begun)


def test_a_number_by_the_name_of_a_column_that_is_known_only_at_the_end_is_an_error():
    tm = pytest.importorskip("torchmetrics")

    class Whole(Parts):
        def loss(self, model, batch):
            out = super().loss(model, batch)
            return {**out, "outputs": model(batch[0]), "targets": batch[1], "error": 1.0}

    errors = tm.MetricCollection({"error": tm.classification.MulticlassAccuracy(3)})
    with pytest.raises(LearningError, match="gives a number 'error', and the metric 'error' has this name"):
        fl.fit(learner(loader(), errors, None, step=Whole()))


def test_a_phase_that_gives_nothing_has_no_losses_and_no_metrics():
    class Look(fl.Phase):
        name = "look"

        def step(self, run):
            pass

    data = {"training": loader(), "look": loader()}
    phases = [fl.TrainingPhase(), Look()]
    fitted = fl.fit(learner(data, fl.metrics.accuracy, phases=phases), 2)
    found = fitted.history.epochs.where(phase="look")
    assert [list(row) for row in found] == [["epoch", "phase", "seconds"]] * 2


class Leave(fl.Callback):
    """Ends a fit by an error after some steps of all phases."""

    def __init__(self, steps):
        self.steps, self.taken = steps, 0

    def step_end(self, run):
        self.taken += 1
        if self.taken == self.steps:
            raise ZeroDivisionError


@settings(max_examples=15, deadline=None)
@given(after=st.integers(1, 20), auroc=st.booleans())
def test_the_history_of_a_run_that_was_left_anywhere_and_resumed_is_that_of_one_run(after, auroc):
    metrics = {"accuracy": fl.metrics.accuracy, "mean": lambda outputs, targets: outputs.mean()}
    if auroc:
        tm = pytest.importorskip("torchmetrics")
        metrics["auroc"] = tm.classification.MulticlassAUROC(3)
    data = (loader(shuffle=True, batch_size=11), loader(batch_size=20))
    betas = 0.5, fl.schedules.Exp(0.9, 0.99)
    scheduler = fl.callbacks.Scheduler(lr=fl.schedules.Exp(0.1, 0.9), betas=betas)
    whole = fl.fit(learner(data, metrics, callbacks=[scheduler]), 3)
    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(learner(data, metrics, callbacks=[scheduler, Leave(after)]), 3)
    left = caught.value.learner
    resumed = fl.fit(left.replace(callbacks=left.callbacks[:-1]), 3 - left.epoch)
    assert same_bits(whole.history, resumed.history)
    assert len(whole.history.steps) == 15
    assert len(whole.history.epochs) == 6


def test_other_metrics_may_come_after_an_epoch_and_not_in_the_middle_of_one():
    fitted = fl.fit(learner(loader(), fl.metrics.accuracy))
    none = fl.callbacks.Metrics()
    callbacks = [c if not isinstance(c, fl.callbacks.Metrics) else none for c in fitted.callbacks]
    assert "accuracy" not in fl.fit(fitted.replace(callbacks=callbacks)).history.epochs[-1]
    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(learner(loader(), fl.metrics.accuracy, callbacks=[Leave(2)]))
    left = caught.value.learner.replace(callbacks=callbacks)
    with pytest.raises(LearningError, match="began with the metrics accuracy, and now they are none"):
        fl.fit(left)


def test_an_error_before_the_fit_began_leaves_the_learner_with_all_that_is_remembered():
    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(learner(loader(), fl.metrics.accuracy, callbacks=[Leave(2)]))
    left = caught.value.learner

    class Early(fl.Callback):
        before = (fl.Callback,)

        def fit_begin(self, run):
            raise ZeroDivisionError

    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(left.replace(callbacks=(Early(), *left.callbacks[:-1])))
    again = caught.value.learner
    one, two = (fl.fit(each.replace(callbacks=left.callbacks[:-1])) for each in (left, again))
    assert same_bits(one.history, two.history)
    assert len(one.history.steps) == 4


def test_a_history_has_every_hyperparameter_that_is_scheduled():
    head = fl.callbacks.Scheduler(where=".weight", lr=fl.schedules.Constant(0.25))
    momentum = fl.callbacks.Scheduler(betas=(fl.schedules.Constant(0.5), 0.875))
    fitted = fl.fit(learner(loader(), callbacks=[head, momentum]))
    row = fitted.history.steps[-1]
    assert (row["learning_rate.weight"], row["betas[0]"], row["betas[1]"]) == (0.25, 0.5, 0.875)
    assert fitted.history.epochs[-1]["learning_rate.weight"] == 0.25


def test_nothing_is_read_from_the_device_during_the_steps():
    """On the meta device, where a read is an error."""

    def step(model, state, batch):
        outputs = torch.empty(len(batch[1]), 3, device="meta")
        out = {"outputs": outputs, "targets": batch[1].to("meta"), "more": outputs.max()}
        return model, state, {"loss": outputs.sum(), **out}

    callbacks = [fl.callbacks.Metrics(fl.metrics.accuracy), fl.callbacks.Recorder()]
    data = fl.DataLoader((X.repeat(8, 1), Y.repeat(8)), batch_size=2)
    begun = fl.Learner(model(), data, fl.Adam(), step=step, defaults=False, callbacks=callbacks, key=KEY)
    with pytest.raises(fl.CallbackError, match=r"Metrics\.epoch_end raised .* data! .after step 200,"):
        fl.fit(begun)


def test_seconds_go_on_after_a_resume(monkeypatch):
    from fluxlike.learning.callbacks import recorder

    now = [100.0]
    monkeypatch.setattr(recorder, "perf_counter", lambda: now[0])

    class Tick(fl.Callback):
        def step_end(self, run):
            now[0] += 1.0

    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(learner(loader(), callbacks=[Tick(), Leave(2)]))
    now[0] += 1000
    left = caught.value.learner
    assert fl.fit(left.replace(callbacks=left.callbacks[:-1])).history.epochs["seconds"] == [4.0]


def test_without_progress_nothing_is_printed(capsys):
    fl.fit(learner((loader(), loader()), fl.metrics.accuracy), 2)
    assert capsys.readouterr() == ("", "")


def test_numpy_is_left_alone_by_a_run():
    np.random.seed(0)
    before = np.random.get_state()[1].tolist()
    fl.fit(learner(loader(), fl.metrics.accuracy))
    assert np.random.get_state()[1].tolist() == before


def test_a_plot_has_a_panel_for_all_rates_and_one_for_every_other_hyperparameter_that_varies():
    pytest.importorskip("matplotlib")
    body = fl.callbacks.Scheduler(where=".weight", lr=fl.schedules.Exp(0.1, 0.9))
    head = fl.callbacks.Scheduler(where=".bias", lr=fl.schedules.Exp(0.2, 0.9))
    betas = fl.callbacks.Scheduler(betas=(fl.schedules.Exp(0.9, 0.99), 0.875))
    figure = fl.fit(learner(loader(batch_size=1), callbacks=[body, head, betas])).history.plot()
    titles = [axis.get_title(loc="left") for axis in figure.axes]
    assert titles == ["loss", "training loss by step", "learning rates by step", "betas[0] by step"]
    assert [line.get_label() for line in figure.axes[2].lines] == ["weight", "bias"]
    assert figure.axes[2].lines[1].get_ydata()[:2] == pytest.approx([0.2, 0.18])


def test_a_running_mean_of_losses_does_not_lag():
    from fluxlike.learning.history.plot import _smooth

    straight = [float(i) for i in range(200)]
    assert _smooth(straight)[50:150] == pytest.approx(straight[50:150], abs=0.5)
    assert _smooth([1.0, float("nan"), 1.0]) == [1.0, 1.0, 1.0]
