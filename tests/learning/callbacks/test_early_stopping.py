"""`EarlyStopping`: when a fit ends that gets no better."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.callbacks.conditional import ConditionalCallback
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.early_stopping import EarlyStopping

DATA = [(torch.ones(2, 1), torch.zeros(2, 1))]


class Scores(fl.Callback):
    """Metrics that are known in advance."""

    writes = ("metrics",)

    def __init__(self, scores):
        self.scores = scores

    def epoch_end(self, run):
        run.metrics = {"loss": self.scores[run.epoch - 1], "accuracy": torch.tensor(0.5)}


def learner(scores, *callbacks, data=(DATA, DATA)):
    own = [*callbacks, Scores(scores)]
    return fl.Learner(fl.Dense(1, 1), data, fl.Descent(0.0), fl.losses.mse, callbacks=own, defaults=False)


def stopped_after(scores, **options):
    return fl.fit(learner(scores, EarlyStopping(**options)), len(scores)).epoch


def test_a_score_that_gets_better_never_stops():
    assert stopped_after([5.0, 4.0, 3.0, 2.0, 1.0], patience=1) == 5


def test_it_stops_after_as_many_epochs_without_a_better_score_as_it_has_patience():
    assert stopped_after([3.0, 1.0, 2.0, 2.0, 2.0, 0.0], patience=3) == 5


def test_a_better_score_starts_the_count_anew():
    assert stopped_after([3.0, 4.0, 2.0, 4.0, 1.0, 4.0, 0.5], patience=2) == 7


@pytest.mark.parametrize("score", [1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_it_stops_on_a_score_that_is_constant_or_not_finite(score, mode):
    assert stopped_after([score] * 10, patience=3, mode=mode) == (4 if math.isfinite(score) else 3)


def test_a_finite_score_is_better_than_nan_before_it():
    assert stopped_after([math.nan, 3.0, 2.0, 1.0], patience=2) == 4


def test_the_largest_score_is_the_best_in_mode_max():
    assert stopped_after([1.0, 2.0, 3.0, 2.5, 2.5], patience=2, mode="max") == 5
    assert stopped_after([3.0, 2.0, 1.0], patience=2, mode="max") == 3


def test_a_gain_of_no_more_than_min_delta_does_not_count():
    assert stopped_after([1.0, 0.95, 0.9, 0.85], patience=2, min_delta=0.5) == 3


def test_slow_gains_add_up_since_they_count_from_the_best_score():
    assert stopped_after([1.0, 0.75, 0.5, 0.25, 0.0], patience=2, min_delta=0.3) == 5


def test_the_learner_says_why_it_stopped():
    found = fl.fit(learner([1.0, 2.0, 3.0], EarlyStopping(patience=2)), 3)
    assert found.stopped == (
        "the loss of validation has not got better for 2 epochs: the best was 1, the last is 3 "
        "(less is better, mode='min')"
    )


def test_a_loop_of_single_epochs_can_end_where_it_stops():
    found, epochs = learner([1.0, 2.0, 3.0, 4.0], EarlyStopping(patience=2)), 0
    while found.stopped is None:
        found, epochs = fl.fit(found, 1), epochs + 1
    assert (found.epoch, epochs) == (3, 3)
    assert fl.fit(found, 0).stopped is None


def test_it_may_watch_a_tensor_and_the_training():
    stop = EarlyStopping("accuracy", "training", patience=2, mode="max")
    assert fl.fit(learner([0.0] * 9, stop, data=DATA), 9).epoch == 3


def test_an_unknown_metric_is_an_error_that_lists_those_there_are():
    with pytest.raises(fl.CallbackError, match="no metric 'f1' in validation; there are 'loss', 'accuracy'"):
        fl.fit(learner([1.0], EarlyStopping("f1", mode="max")), 1)


def test_a_phase_that_the_learner_lacks_is_an_error_before_the_first_epoch():
    with pytest.raises(fl.CallbackError, match="watches the phase 'validation', and this learner has 'train"):
        fl.fit(learner([1.0], EarlyStopping(), data=DATA), 1)


def test_a_metric_of_several_numbers_is_an_error_that_says_its_shape():
    with pytest.raises(fl.CallbackError, match=r"'loss' is of shape \(3,\)"):
        fl.fit(learner([torch.ones(3)], EarlyStopping()), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "lowest"}, 'mode="min".* for a loss, "max" for an accuracy'),
        ({"patience": 0}, "patience=0"),
        ({"patience": 1.5}, "patience=1.5"),
        ({"min_delta": -1.0}, "min_delta=-1.0"),
        ({"min_delta": math.nan}, "min_delta=nan"),
    ],
)
def test_a_setting_out_of_range_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**options)


scores = st.lists(st.sampled_from([0.0, 1.0, 2.0, math.nan]), min_size=2, max_size=8)


@settings(max_examples=25, deadline=None)
@given(scores, st.integers(1, 7), st.integers(1, 3))
def test_a_fit_in_two_parts_stops_where_one_fit_does(scores, first, patience):
    whole = fl.fit(learner(scores, EarlyStopping(patience=patience)), len(scores))
    parts = fl.fit(learner(scores, EarlyStopping(patience=patience)), min(first, len(scores)))
    if parts.stopped is None:
        parts = fl.fit(parts, len(scores) - parts.epoch)
    assert (parts.epoch, parts.memory["EarlyStopping"]) == (whole.epoch, whole.memory["EarlyStopping"])


def test_a_fit_that_was_left_in_mid_epoch_stops_where_one_fit_does():
    def leave(run):
        if run.step == 5:
            raise fl.CancelFit("left")

    stop, data = EarlyStopping(patience=3), ([*DATA, *DATA], DATA)
    left = fl.fit(learner([1.0] * 9, CustomCallback("step_end", leave, "training"), stop, data=data), 9)
    assert (left.stopped, left.epoch, left.batch) == ("left", 2, 1)
    assert fl.fit(left, 7).epoch == 4


def test_another_callback_can_be_around_it():
    late = ConditionalCallback(EarlyStopping(patience=1), lambda run: run.epoch > 3)
    assert fl.fit(learner([1.0] * 9, late), 9).epoch == 5
