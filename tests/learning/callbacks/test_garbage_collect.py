"""`GarbageCollect`: when garbage is collected."""

from __future__ import annotations

import gc
import weakref
from unittest.mock import patch

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.garbage import GarbageCollect

DATA = [(torch.ones(2, 1), torch.zeros(2, 1))] * 5


def learner(*callbacks):
    data = (DATA, DATA[:2])
    return fl.Learner(
        fl.Dense(1, 1), data, fl.Descent(0.1), fl.losses.mse, callbacks=callbacks, defaults=False
    )  # fmt: skip


def test_it_collects_at_every_n_th_step_of_training_and_as_epochs_end():
    when = []
    with patch.object(gc, "collect", lambda: when.append(here[-1])):
        here = [""]
        note = CustomCallback("step_end", lambda run: here.append((run.phase, run.step)))
        fl.fit(learner(note, GarbageCollect(every=3)), 2)
    steps = [("training", 3), ("training", 5), ("validation", 5)]
    assert when == [*steps, ("training", 6), ("training", 9), ("training", 10), ("validation", 10)]


def test_a_circle_is_gone_after_it_even_where_python_does_not_collect():
    class Node:
        pass

    def make_circle(run):
        node = Node()
        node.itself = node
        found.append(weakref.ref(node))

    found = []
    gc.disable()
    try:
        fl.fit(learner(CustomCallback("step_end", make_circle), GarbageCollect(every=2)), 1)
    finally:
        gc.enable()
    assert all(ref() is None for ref in found)


@pytest.mark.parametrize("every", [0, -1, 2.5, True])
@pytest.mark.parametrize(
    "make",
    [
        GarbageCollect,
        lambda every: fl.callbacks.Checkpointer("checkpoints", every=every),
        lambda every: fl.callbacks.StopOnNonFiniteLoss(every=every),
    ],
    ids=["garbage", "checkpoints", "losses"],
)
def test_a_number_of_steps_that_is_none_is_an_error(make, every):
    with pytest.raises(ValueError, match=f"has every={every}; write after how many steps, a whole number"):
        make(every)
