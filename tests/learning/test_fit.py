"""The loop: what a fit gives, in which order things happen, and what is left when something ends it."""

from __future__ import annotations

import random
import signal
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.events import Event, LearningError

pytestmark = pytest.mark.usefixtures("ctrl_c")

X = torch.linspace(-1, 1, 48).reshape(24, 2)
Y = (X.sum(1) > 0).long()


def network(seed=0):
    torch.manual_seed(seed)
    return fl.Chain(fl.Dense(2, 8, fl.relu), fl.BatchNorm(8), fl.Dropout(0.3), fl.Dense(8, 2))


def learner(model=None, data=None, *, callbacks=(), seed=1, **options):
    model = network() if model is None else model
    if data is None:
        data = fl.DataLoader((X, Y), batch_size=5, shuffle=True)
    torch.manual_seed(seed)
    options.setdefault("rule", fl.Adam(1e-2))
    rule = options.pop("rule")
    loss = fl.losses.logitcrossentropy if "step" not in options else None
    return fl.Learner(model, data, rule, loss, callbacks=callbacks, defaults=False, **options)


def same(a, b):
    return fl.tree.allclose((a.model, a.state), (b.model, b.state), rtol=0, atol=0)


def same_model(a, b):
    return fl.tree.allclose(a.model, b.model, rtol=0, atol=0)


class Told(fl.Callback):
    """Writes down what happens."""

    reads = ("out",)

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        if name.startswith("_") or name not in {event.value for event in Event}:
            raise AttributeError(name)
        return lambda run: self.told.append((name, run.phase, run.epoch, run.step, run.batch_number))


def test_the_numbers_are_those_of_the_two_line_loop():
    batches = [(X[i : i + 5], Y[i : i + 5]) for i in range(0, 24, 5)]
    model = fl.Chain(fl.Dense(2, 8, fl.relu), fl.BatchNorm(8), fl.Dense(8, 2))
    fitted = fl.fit(learner(model, batches), 3)

    def loss(model, x, y):
        return fl.losses.logitcrossentropy(model(x), y)

    state = fl.setup(fl.Adam(1e-2), model)
    for _ in range(3):
        for x, y in batches:
            grads = fl.gradient(loss, model, x, y)
            model, state = fl.update(state, model, grads)
    assert fl.tree.allclose((fitted.model, fitted.state), (model, state), rtol=0, atol=0)
    trained = fl.train(loss, *_anew(batches), epochs=3)
    again = fl.train(loss, *_anew(batches), epochs=3)
    assert fl.tree.allclose(trained, again, rtol=0, atol=0)


def _anew(batches):
    model = network()
    return model, batches, fl.setup(fl.Adam(1e-2), model)


def test_fit_changes_neither_the_learner_nor_the_model_nor_global_randomness():
    model = network()
    before = fl.tree.clone(model)
    begun = learner(model)
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    fitted = fl.fit(begun, 2)
    after = torch.rand(3), np.random.rand(3).tolist(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    assert torch.equal(after[0], torch.rand(3))
    assert after[1:] == (np.random.rand(3).tolist(), random.random())
    assert fl.tree.allclose(model, before, rtol=0, atol=0)
    assert begun.model is model
    assert (begun.epoch, begun.step) == (0, 0)
    assert (fitted.epoch, fitted.step) == (2, 10)
    assert not fl.tree.allclose(fitted.model, before)


@pytest.mark.parametrize("keyed", [False, True])
def test_seeded_runs_repeat_to_the_bit(keyed):
    key = fl.Key(7) if keyed else None
    a, b = (fl.fit(learner(key=key), 2) for _ in range(2))
    assert same(a, b)
    other = fl.fit(learner(key=fl.Key(8) if keyed else None, seed=2), 2)
    assert not same(a, other)


@settings(max_examples=8, deadline=None)
@given(parts=st.lists(st.integers(0, 2), min_size=1, max_size=4))
def test_epochs_in_several_fits_are_the_epochs_of_one(parts):
    one = fl.fit(learner(), sum(parts))
    several = learner()
    for epochs in parts:
        several = fl.fit(several, epochs)
    assert same(one, several)
    assert (one.epoch, one.step) == (several.epoch, several.step)


@settings(max_examples=10, deadline=None)
@given(at=st.integers(1, 11))
def test_a_fit_that_was_left_anywhere_goes_on_to_the_same_bits(at):
    class Leave(fl.Callback):
        def step_end(self, run):
            if run.step == at:
                raise fl.CancelFit("enough")

    data = {"training": fl.DataLoader((X, Y), batch_size=5, shuffle=True), "validation": [(X, Y)]}
    whole = fl.fit(learner(data=data), 3)
    left = fl.fit(learner(data=data, callbacks=[Leave()]), 3)
    assert left.stopped == "enough"
    assert left.step == at
    gone_on = fl.fit(left.replace(callbacks=()), 3 - left.epoch)
    assert same(whole, gone_on)
    assert (gone_on.epoch, gone_on.step, gone_on.stopped) == (3, 15, None)


def test_events_come_in_their_order():
    told = Told()
    data = {"training": [(X, Y)] * 2, "validation": [(X, Y)]}
    fl.fit(learner(data=data, callbacks=[told]), 1)
    assert told.told == [
        ("fit_begin", "", 1, 0, 0),
        ("epoch_begin", "training", 1, 0, 0),
        *[
            (name, "training", 1, n + name.startswith("step_end"), n + name.startswith("step_end"))
            for n in range(2)
            for name in ("step_begin", "loss_begin", "backward_begin", "backward_end", "step_end")
        ],
        ("epoch_end", "training", 1, 2, 0),
        ("epoch_begin", "validation", 1, 2, 0),
        ("step_begin", "validation", 1, 2, 0),
        ("loss_begin", "validation", 1, 2, 0),
        ("step_end", "validation", 1, 2, 1),
        ("epoch_end", "validation", 1, 2, 0),
        ("fit_end", "validation", 1, 2, 0),
    ]


def test_training_is_in_train_mode_and_validation_in_test_mode_without_a_graph():
    seen = []

    def look(x):
        seen.append((fl.training(None), torch.is_grad_enabled()))
        return x

    model = fl.Chain(fl.Dense(2, 2), look)
    fl.fit(learner(model, {"training": [(X, Y)], "validation": [(X, Y)]}), 1)
    assert seen == [(True, True), (False, False)]


def test_callbacks_between_the_parts_of_a_step_change_nothing_by_listening():
    assert same(fl.fit(learner(callbacks=[Told()]), 2), fl.fit(learner(), 2))


def test_a_callback_may_change_the_gradient():
    class Halve(fl.Callback):
        reads = writes = ("grads",)

        def backward_end(self, run):
            run.grads = fl.tree.scale(run.grads, 0.5)

    halved = fl.fit(learner(callbacks=[Halve()], rule=fl.Descent(0.2)), 1)
    assert same_model(halved, fl.fit(learner(rule=fl.Descent(0.1)), 1))


@pytest.mark.parametrize("event", ["step_begin", "loss_begin", "backward_begin", "backward_end"])
def test_a_cancelled_step_changes_nothing_and_the_next_batch_is_taken(event):
    class Skip(fl.Callback):
        reads = ("batch",)

    def skip(self, run):
        if run.batch_number == 1:
            raise fl.CancelStep

    setattr(Skip, event, skip)
    model = fl.Chain(fl.Dense(2, 8, fl.relu), fl.Dense(8, 2))
    batches = [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 24, 6)]
    told = Told()
    skipped = fl.fit(learner(model, batches, callbacks=[Skip(), told]), 1)
    assert same(skipped, fl.fit(learner(model, [batches[0], *batches[2:]]), 1))
    assert skipped.step == 4
    assert sum(name == "step_end" for name, *_ in told.told) == 3


def test_a_cancelled_epoch_ends_its_phase_and_the_fit_goes_on():
    class Short(fl.Callback):
        def step_end(self, run):
            if run.phase == "training" and run.batch_number == 2:
                raise fl.CancelEpoch

    told = Told()
    data = {"training": [(X, Y)] * 4, "validation": [(X, Y)]}
    fitted = fl.fit(learner(data=data, callbacks=[Short(), told]), 2)
    assert (fitted.epoch, fitted.step, fitted.stopped) == (2, 4, None)
    assert [phase for name, phase, *_ in told.told if name == "epoch_end"] == ["training", "validation"] * 2


def test_the_widest_of_several_cancellations_holds_and_all_callbacks_hear_the_event():
    class Narrow(fl.Callback):
        def step_end(self, run):
            raise fl.CancelEpoch

    class Wide(fl.Callback):
        def step_end(self, run):
            raise fl.CancelFit("done")

    told = Told()
    fitted = fl.fit(learner(callbacks=[Wide(), Narrow(), told]), 2)
    assert fitted.stopped == "done"
    assert [name for name, *_ in told.told if name in ("step_end", "epoch_end", "fit_end")] == [
        "step_end",
        "fit_end",
    ]


def test_an_error_in_a_callback_names_it_and_leaves_a_learner_that_goes_on():
    class Wrong(fl.Callback):
        def step_end(self, run):
            if run.step == 2:
                raise ZeroDivisionError("no")

    told = Told()
    with pytest.raises(
        fl.CallbackError, match=r"Wrong\.step_end raised ZeroDivisionError: no \(after step 2"
    ) as caught:
        fl.fit(learner(callbacks=[Wrong(), told]), 2)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert told.told[-1][0] == "exception"
    left = caught.value.learner
    assert left.step == 2
    assert same(fl.fit(left.replace(callbacks=()), 2), fl.fit(learner(), 2))


def test_an_error_in_the_data_or_the_model_keeps_its_type_and_brings_the_learner():
    def data():
        yield X, Y
        raise OSError("the disk is gone")

    class Disk:
        def __iter__(self):
            return data()

    with pytest.raises(OSError, match="the disk is gone") as caught:
        fl.fit(learner(data=Disk()), 2)
    assert caught.value.learner.step == 1
    assert "In a fit, after step 1, epoch 1 of 2, training, batch 1" in caught.value.__notes__[0]


def test_a_loss_that_is_not_finite_names_the_first_layer_and_leaves_the_model_as_it_was():
    def logarithm(x):
        return torch.log(x - 100)

    model = fl.Chain(fl.Dense(2, 4), fl.Chain(logarithm, fl.Dropout(0.5)), fl.Dense(4, 2))
    for jit in (False, True):
        begun = fl.Learner(model, [(X, Y)], fl.Adam(), fl.losses.logitcrossentropy, jit=jit)
        with pytest.raises(
            LearningError, match=r"first layer whose output is not finite is \.layers\[1\]\.layers\[0\]"
        ) as e:
            fl.fit(begun)
        assert same(e.value.learner, begun)


@pytest.mark.parametrize(
    ("model", "batch", "found"),
    [
        (fl.Dense(2, 2), (X * torch.nan, Y), r"the batch holds NaN or Inf at \[0\]; look at the data"),
        (fl.at(fl.Dense(2, 2), ".bias").apply(lambda b: b / 0), (X, Y), r"got into the model at \.bias"),
        (fl.Dense(2, 2), (X, Y), "so the loss itself makes it"),
    ],
    ids=["batch", "parameters", "loss"],
)
def test_a_loss_that_is_not_finite_is_traced_to_batch_parameters_or_loss(model, batch, found):
    def loss(outputs, targets):
        value = fl.losses.logitcrossentropy(outputs, targets)
        return value if "itself" not in found else value / 0

    with pytest.raises(LearningError, match=found):
        fl.fit(fl.Learner(model, [batch], fl.Adam(), loss))


def test_training_by_train_stops_at_a_loss_that_is_not_finite():
    model = fl.Dense(2, 1)
    state = fl.setup(fl.Adam(), model)
    with pytest.raises(LearningError, match="the loss is nan after step 1"):
        fl.train(lambda m, x, y: m(x).sum() * torch.nan, model, [(X, Y)], state)


def test_ctrl_c_ends_the_fit_after_the_step_and_says_how_to_go_on(capsys):
    class Press(fl.Callback):
        def loss_begin(self, run):
            if run.step == 6:
                signal.raise_signal(signal.SIGINT)

    left = fl.fit(learner(callbacks=[Press()]), 3)
    assert left.stopped == "interrupted"
    assert left.step == 7
    assert "go on with fit(learner, 2)" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert same(fl.fit(left.replace(callbacks=()), 2), fl.fit(learner(), 3))


def test_a_second_ctrl_c_stops_at_once_and_brings_the_learner():
    class Press(fl.Callback):
        def loss_begin(self, run):
            if run.step == 2:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        fl.fit(learner(callbacks=[Press()]), 3)
    assert caught.value.learner.step == 2


def test_learners_may_be_fitted_in_several_threads():
    expected = [fl.fit(learner(seed=s, key=fl.Key(s)), 2) for s in range(3)]
    found = [None] * 3

    def one(s, begun):
        found[s] = fl.fit(begun, 2)

    threads = [threading.Thread(target=one, args=(s, learner(seed=s, key=fl.Key(s)))) for s in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(same(a, b) for a, b in zip(expected, found, strict=True))


@pytest.mark.parametrize("engine", ["recorded", pytest.param("kernels", marks=pytest.mark.slow)])
def test_a_compiled_learner_gives_the_numbers_of_an_eager_one_from_two_traces(engine):
    key = fl.Key(0)  # draws of a key are the same under jit
    eager = fl.fit(learner(key=key), 3)
    compiled = fl.fit(learner(key=key, jit=True), 3)
    assert fl.tree.allclose(eager.model, compiled.model, rtol=1e-4, atol=1e-5)
    assert compiled._shared["functions"][False].cache_info().traces == 2  # the last batch is smaller


def test_a_gan_has_two_models_and_two_rules_in_a_step_of_its_own():
    model = {"generator": fl.Dense(2, 2), "discriminator": fl.Dense(2, 1)}
    rule = {"generator": fl.Adam(1e-2), "discriminator": fl.Descent(1e-2)}

    def step(model, state, batch):
        noise, real = batch

        def judged(discriminator, fake):
            return discriminator(fake).mean() - discriminator(real).mean()

        fake = model["generator"](noise)
        loss, grads = fl.withgradient(judged, model["discriminator"], fake)
        critic, critic_state = fl.update(state["discriminator"], model["discriminator"], grads)
        grads = fl.gradient(lambda g: -critic(g(noise)).mean(), model["generator"])
        maker, maker_state = fl.update(state["generator"], model["generator"], grads)
        new = {"generator": maker, "discriminator": critic}
        return new, {"generator": maker_state, "discriminator": critic_state}, loss

    data = [(torch.rand(4, 2), torch.rand(4, 2)) for _ in range(3)]
    eager, compiled = (
        fl.fit(fl.Learner(model, data, rule, step=step, defaults=False, jit=jit), 2) for jit in (False, True)
    )
    assert eager.step == 6
    assert not fl.tree.allclose(eager.model, model)
    assert fl.tree.allclose(eager.model, compiled.model, rtol=1e-5, atol=1e-6)


def test_a_learner_is_a_tree_that_moves_and_saves_like_one(tmp_path):
    fitted = fl.fit(learner(), 2)
    doubled = fl.f64(fitted)
    assert doubled.model.layers[0].weight.dtype == torch.float64
    assert doubled.step == fitted.step
    fl.save(tmp_path / "learner.safetensors", fitted)
    loaded = fl.load(tmp_path / "learner.safetensors", like=fitted)
    assert same(fl.fit(loaded, 1), fl.fit(fitted, 1))
