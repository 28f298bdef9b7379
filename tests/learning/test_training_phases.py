"""Phases of training beside the first: all that belongs to training comes to them, whatever their name."""

import math

import pytest
import torch

import fluxlike as fl


class Practice(fl.TrainingPhase):
    name = "practice"


BATCH = (torch.ones(4, 2), torch.zeros(4, 1))


def learner(practice, *callbacks):
    data = {"training": [BATCH] * 2, "practice": practice}
    phases = [fl.TrainingPhase(), Practice()]
    options = {"phases": phases, "callbacks": callbacks, "progress": False}
    return fl.Learner(fl.Dense(2, 1), data, fl.Descent(0.1), fl.losses.mse, **options)


def test_schedules_and_the_history_count_the_steps_of_all_phases_of_training():
    schedule = fl.callbacks.Scheduler(lr=lambda step: 0.01 * (step + 1))
    history = fl.fit(learner([BATCH], schedule), 2).history
    assert history.steps["phase"] == ["training", "training", "practice"] * 2
    assert history.steps["step"] == [1, 2, 3, 4, 5, 6]
    assert history.steps["learning_rate"] == pytest.approx([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])
    assert history["training", "learning_rate"] == pytest.approx([0.02, 0.05])
    assert history["practice", "learning_rate"] == pytest.approx([0.03, 0.06])


def test_a_loss_that_is_not_finite_ends_the_fit_in_any_phase_of_training():
    with pytest.raises(fl.callbacks.NonFiniteLoss, match="practice, batch 1 of 1: the batch holds NaN"):
        fl.fit(learner([(torch.full((4, 2), math.nan), BATCH[1])]))


def test_checkpoints_are_saved_after_so_many_steps_of_all_phases_of_training(tmp_path):
    saving = fl.callbacks.Checkpointer(tmp_path, every=3, keep=None, background=False)
    fl.fit(learner([BATCH] * 3, saving))
    assert [int(path.stem[5:]) for path in sorted(tmp_path.glob("step-*"))] == [3, 5]
