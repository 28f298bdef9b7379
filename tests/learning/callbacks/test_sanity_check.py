"""`SanityCheck`: what it finds before the first step, and that it leaves no trace."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

import fluxlike as fl
from fluxlike.learning.callbacks.custom import CustomCallback
from fluxlike.learning.callbacks.metrics import Metrics
from fluxlike.learning.callbacks.sanity import SanityCheck
from fluxlike.learning.callbacks.to_device import ToDevice

X, Y = torch.linspace(-1, 1, 36).reshape(12, 3), torch.arange(12) % 2


class Noisy(fl.Callback):
    """Draws from every generator."""

    def step_end(self, run):
        seen = run.memory.setdefault("draws", [])
        seen += [torch.rand(()).item(), float(np.random.rand()), random.random()]


def network(out=2):
    torch.manual_seed(0)
    return fl.Chain(fl.Dense(3, 8, fl.relu), fl.BatchNorm(8), fl.Dropout(0.5), fl.Dense(8, out))


def loader(x=X, y=Y, **options):
    return fl.DataLoader((x, y), batch_size=4, **options)


def learner(*callbacks, data=None, out=2, loss=fl.losses.logitcrossentropy, model=None, **options):
    torch.manual_seed(1)
    options.setdefault("defaults", False)
    model = network(out) if model is None else model
    loss = None if "step" in options else loss
    return fl.Learner(
        model, loader(shuffle=True) if data is None else data, fl.Adam(1e-2), loss, callbacks=callbacks,
        **options,
    )  # fmt: skip


def problem(found):
    """What it says of a learner; no step was taken, and the learner is as it was."""
    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(found, 1)
    left = caught.value.learner
    assert left.step == 0
    assert fl.tree.allclose((left.model, left.state), (found.model, found.state), rtol=0, atol=0)
    return str(caught.value)


# No trace


@pytest.mark.parametrize("key", [None, fl.Key(3)], ids=["no key", "key"])
@pytest.mark.parametrize("kind", ["loader", "list", "dataset"])
def test_the_numbers_of_a_run_are_the_same_with_and_without(key, kind):
    data = {
        "loader": lambda: (loader(shuffle=True), loader(shuffle=True)),
        "list": lambda: (list(loader()), list(loader())),
        "dataset": lambda: fl.DataLoader(
            list(zip(X, Y, strict=True)), 4, shuffle=True, transform=lambda b: (b[0] + torch.rand(()), b[1])
        ),
    }[kind]
    one = fl.fit(learner(SanityCheck(), Noisy(), data=data(), key=key), 2)
    other = fl.fit(learner(Noisy(), data=data(), key=key), 2)
    assert fl.tree.allclose((one.model, one.state), (other.model, other.state), rtol=0, atol=0)
    assert one.memory["Noisy"] == other.memory["Noisy"]


@pytest.mark.parametrize("step", range(1, 6))
def test_a_run_that_was_left_and_gone_on_with_has_the_same_numbers(step):
    def leave(run):
        if run.step == step:
            raise fl.CancelFit("left")

    callbacks = SanityCheck(), CustomCallback("step_end", leave)
    left = fl.fit(learner(*callbacks), 2)
    one, other = fl.fit(left, 2 - left.epoch), fl.fit(learner(), 2)
    assert fl.tree.allclose((one.model, one.state), (other.model, other.state), rtol=0, atol=0)


def test_metrics_and_history_hold_nothing_of_it():
    options = {"metrics": {"error": lambda o, t: (o.argmax(1) != t).float().mean()}, "progress": False}
    seen = []
    note = CustomCallback("epoch_end", lambda run: seen.append(run.metrics), reads=("metrics",))
    one = fl.fit(learner(SanityCheck(), note, defaults=True, **options), 2)
    other = fl.fit(learner(note, defaults=True, **options), 2)
    assert seen[:2] == seen[2:]
    assert fl.tree.allclose(one.model, other.model, rtol=0, atol=0)


def test_it_is_the_same_under_jit():
    one, other = fl.fit(learner(SanityCheck(), jit=True), 1), fl.fit(learner(jit=True), 1)
    assert fl.tree.allclose(one.model, other.model, rtol=0, atol=0)


class Once:
    """A stream that counts how often it was read."""

    def __init__(self):
        self.begun = self.given = 0

    def __iter__(self):
        self.begun += 1
        for batch in loader():
            self.given += 1
            yield batch


def test_a_stream_is_read_by_the_fit_alone():
    streams = Once(), Once()
    fl.fit(learner(SanityCheck(), data=streams), 2)
    assert [(s.begun, s.given) for s in streams] == [(2, 6), (2, 6)]


def test_one_batch_is_taken_of_data_that_can_be_read_anew():
    class Counted:
        taken = 0

        def __len__(self):
            return 12

        def __getitem__(self, i):
            type(self).taken += 1
            return X[i], Y[i]

    fl.fit(learner(SanityCheck(), data=(loader(), fl.DataLoader(Counted(), 4))), 1)
    assert Counted.taken == 4 + 12


def test_nothing_is_tried_twice_in_a_fit():
    calls = []

    class Step(fl.Step):
        def loss(self, model, batch):
            calls.append(1)
            return {"loss": fl.losses.mse(model(batch[0]), torch.zeros(4, 2))}

    fl.fit(learner(SanityCheck(), step=Step(), data=(loader(), loader())), 2)
    assert len(calls) == 2 + 12


# What it finds


def test_labels_out_of_range_are_an_error_that_says_how_many_classes_there_are():
    found = problem(learner(SanityCheck(), data=loader(y=torch.arange(12) % 4)))
    assert (
        "labels of training go from 0 to 3, and the outputs have 2 classes, 0 to 1: give the last layer 4"
        in found
    )
    found = problem(learner(SanityCheck(), data=loader(y=Y - 1)))
    assert "go from -1 to 0, and the outputs have 2 classes, 0 to 1: count classes from 0" in found


def test_labels_of_the_validation_are_found_before_the_training():
    found = problem(learner(SanityCheck(), data=(loader(), loader(y=torch.arange(12) % 3))))
    assert "labels of validation go from 0 to 2" in found


def test_labels_that_the_loss_ignores_or_does_not_take_for_classes_are_fine():
    ignoring = lambda o, y: fl.losses.logitcrossentropy(o, y, ignore_index=-100)  # noqa: E731
    fl.fit(learner(SanityCheck(), data=loader(y=torch.tensor([-100, 0, 1] * 4)), loss=ignoring), 1)
    by_identity = lambda o, y: (o.mean(1) - y).square().mean()  # noqa: E731
    fl.fit(learner(SanityCheck(), data=loader(y=torch.arange(12) * 50), loss=by_identity), 1)


def test_a_batch_that_the_model_does_not_take_is_described():
    found = problem(learner(SanityCheck(), data=loader(x=torch.ones(12, 5))))
    assert "a step of training fails on its first batch, which is [0] (4, 5) float32, [1] (4,) int64" in found


def test_a_batch_that_is_no_pair_is_an_error_that_says_what_to_write():
    found = problem(learner(SanityCheck(), data=fl.DataLoader(X, 4)))
    assert "needs batches (x, y)" in found


def test_a_loss_that_is_not_finite_is_an_error_that_names_where_it_began():
    x = X.clone()
    x[1, 1] = torch.nan
    assert "the loss of training is nan before the first step: the batch holds NaN" in problem(
        learner(SanityCheck(), data=loader(x=x))
    )


@pytest.mark.parametrize(("loss", "message"), [(0.5, "a float"), (torch.ones(3), r"of shape (3,)")])
def test_a_loss_that_is_no_0_d_tensor_is_an_error(loss, message):
    found = problem(learner(SanityCheck(), step=lambda m, s, b: (m, s, loss)))
    assert f"the loss of training is {message}; a step gives a 0-d tensor" in found


def test_a_metric_that_does_not_take_the_outputs_is_named():
    metrics = Metrics({"distance": lambda o, t: (o - t).mean()})
    found = problem(learner(SanityCheck(), metrics))
    assert (
        "the metric 'distance' does not take the outputs and targets of training, which are [0] (4, 2)"
        in found
    )


def test_a_metric_without_outputs_is_an_error():
    metrics = Metrics({"distance": lambda o, t: (o - t).mean()})
    found = problem(learner(SanityCheck(), metrics, step=lambda m, s, b: (m, s, torch.ones(()))))
    assert (
        "the metric 'distance' needs outputs and targets, and the step of training gives no 'outputs'"
        in found
    )


def test_a_batch_on_another_device_is_an_error_that_says_how_to_move_it():
    away = [(torch.ones(4, 3, device="meta"), Y[:4])]
    found = problem(learner(SanityCheck(), data=away))
    assert (
        "the batch of training is on meta at [0], the model on cpu; write callbacks=[fluxlike.callb" in found
    )


class Away:
    """A stream on another device."""

    def __iter__(self):
        yield torch.ones(4, 3, device="meta"), Y[:4]


def test_the_device_of_a_stream_counts_when_its_first_batch_comes():
    with pytest.raises(fl.CallbackError, match=r"the batch of validation is on meta at \[0\], the"):
        fl.fit(learner(SanityCheck(), data=(loader(), Away())), 1)


def test_phases_of_your_own_are_left_alone():
    class Own(fl.Phase):
        name = "own"

        def step(self, run):
            pass

    data = {"own": [object()], "training": loader()}
    fl.fit(learner(SanityCheck(), data=data, phases=[Own(), fl.TrainingPhase()]), 1)


def test_validation_data_that_gives_no_batch_is_an_error():
    assert "the data of validation gives no batch" in problem(learner(SanityCheck(), data=(loader(), [])))


def test_it_goes_with_moving_to_a_device():
    fl.fit(learner(SanityCheck(), ToDevice("cpu"), data=(loader(), loader())), 1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_labels_out_of_range_leave_the_device_usable():
    wrong = learner(SanityCheck(), ToDevice("cuda"), data=loader(y=torch.arange(12) % 4))
    with pytest.raises(fl.CallbackError, match="give the last layer 4"):
        fl.fit(wrong, 1)
    fl.fit(learner(SanityCheck(), ToDevice("cuda"), data=(loader(), loader())), 1)
    assert torch.ones(1, device="cuda").item() == 1
