"""Whether less or more of a score is better: said, declared, or an error; never guessed."""

from __future__ import annotations

import functools

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.callbacks.conditional import ConditionalCallback
from fluxlike.learning.direction import mode_of

DATA = [(torch.eye(4), torch.tensor([0, 1, 1, 1]))]
RISING = [0.25, 0.5, 0.75, 1.0]  # of the outputs, epoch by epoch, that many are right


class Rises(fl.Step):
    """A model whose accuracy is known: it counts the epochs, and as many outputs are right."""

    def train(self, model, state, batch):
        return {"epochs": model["epochs"] + 1}, state, self.evaluate(model, state, batch)

    def evaluate(self, model, state, batch):
        _, targets = batch
        right = torch.arange(4) < model["epochs"]
        outputs = fl.onehotbatch(torch.where(right, targets, 1 - targets), range(2)).float()
        return {"loss": model["epochs"], "outputs": outputs, "targets": targets}


def learner(*callbacks, metrics):
    start = {"epochs": torch.tensor(0.0)}
    options = {"step": Rises(), "metrics": metrics, "callbacks": callbacks, "progress": False}
    return fl.Learner(start, {"training": [DATA[0]], "validation": DATA}, fl.Descent(0.0), **options)


def shares(outputs, targets):
    return fl.metrics.accuracy(outputs, targets)


@pytest.mark.parametrize(
    "metrics", [[fl.metrics.accuracy], {"accuracy": functools.partial(fl.metrics.accuracy)}]
)
def test_the_best_by_accuracy_is_the_greatest_without_a_word(tmp_path, metrics):
    saving = fl.callbacks.Checkpointer(tmp_path, by="accuracy", keep=1, background=False)
    ended = fl.fit(learner(saving, metrics=metrics), 4)
    assert ended.history["validation", "accuracy"] == RISING
    best = fl.load_learner(tmp_path, like=ended, by="accuracy")
    assert best.history.last("validation", "accuracy") == 1.0
    assert fl.load_learner(tmp_path, like=learner(metrics=metrics), by="accuracy").epoch == 4


def test_early_stopping_counts_a_rise_of_accuracy_as_better():
    stop = fl.callbacks.EarlyStopping("accuracy", patience=2)
    assert fl.fit(learner(stop, metrics=[fl.metrics.accuracy]), 4).epoch == 4
    late = ConditionalCallback(stop, lambda run: run.epoch > 1)
    assert fl.fit(learner(late, metrics=[fl.metrics.accuracy]), 4).stopped is None
    falls = fl.callbacks.EarlyStopping("accuracy", patience=2, mode="min")
    assert "less is better" in fl.fit(learner(falls, metrics=[fl.metrics.accuracy]), 4).stopped


@pytest.mark.parametrize(
    "callback",
    [
        lambda folder: fl.callbacks.EarlyStopping("shares"),
        lambda folder: fl.callbacks.Checkpointer(folder, by="shares"),
    ],
)
def test_a_metric_that_does_not_say_which_is_better_is_an_error_before_the_first_step(tmp_path, callback):
    begun = learner(callback(tmp_path), metrics=[shares])
    with pytest.raises(
        fl.CallbackError, match=r"'shares' is better .*write \w+\(.*'shares', mode=\"max\"\)"
    ) as e:
        fl.fit(begun, 4)
    assert e.value.learner.step == 0


def test_loading_the_best_by_a_metric_that_does_not_say_which_is_better_is_an_error(tmp_path):
    saving = fl.callbacks.Checkpointer(tmp_path, background=False)
    ended = fl.fit(learner(saving, metrics=[shares]), 2)
    with pytest.raises(ValueError, match=r"load_learner.*by='shares', mode=\"max\"\)"):
        fl.load_learner(tmp_path, like=ended, by="shares")
    assert fl.load_learner(tmp_path, like=ended, by="shares", mode="min").epoch == 1


class Declared:
    """A metric of two columns that says for each which is better."""

    name = "declared"

    def __init__(self, higher_is_better):
        self.higher_is_better = higher_is_better

    def init(self):
        raise NotImplementedError

    restore = init


@pytest.mark.parametrize(
    ("by", "metrics", "mode"),
    [
        ("loss", [], "min"),
        ("l1_loss", [torch.nn.functional.l1_loss], "min"),
        ("BCELoss", [], "min"),
        ("error", [], "min"),
        ("mae", [fl.losses.mae], "min"),
        ("share", {"share": fl.metrics.accuracy}, "max"),
        ("declared", Declared(False), "min"),
        ("up", Declared({"up": True, "down": False}), "max"),
        ("down", Declared({"up": True, "down": False}), "min"),
        ("no_loss", {"no_loss": fl.metrics.accuracy}, "max"),
    ],
)
def test_a_metric_says_which_is_better_and_else_a_name_that_ends_in_loss_or_error(by, metrics, mode):
    assert mode_of(by, None, fl.callbacks.Metrics(metrics).metrics, write="f(") == mode
    assert mode_of(by, "max", fl.callbacks.Metrics(metrics).metrics, write="f(") == "max"


@pytest.mark.parametrize("by", ["f1", "floss", "lossy", "loss_weight", "terror", "declared"])
def test_other_names_say_nothing(by):
    with pytest.raises(ValueError, match=f"more or less of '{by}'.*metrics of the learner are 'declared'"):
        mode_of(by, None, fl.callbacks.Metrics(Declared(None)).metrics, write="f(")


def test_a_mode_that_is_none_is_an_error_as_it_is_written(tmp_path):
    with pytest.raises(
        ValueError, match=r"mode='most': write Checkpointer\(folder, by='loss', mode=\"min\"\)"
    ):
        fl.callbacks.Checkpointer(tmp_path, by="loss", mode="most")
    with pytest.raises(ValueError, match=r"mode='most': write EarlyStopping\('loss', mode=\"min\"\)"):
        fl.callbacks.EarlyStopping(mode="most")
