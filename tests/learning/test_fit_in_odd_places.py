"""A fit where callbacks, data and signals do what nobody expects."""

from __future__ import annotations

import pickle
import random
import signal
from collections import namedtuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.learning.run import _samples

X = torch.linspace(-1, 1, 48).reshape(24, 2)
Y = (X.sum(1) > 0).long()
BATCHES = [(X[i : i + 6], Y[i : i + 6]) for i in range(0, 24, 6)]


pytestmark = pytest.mark.usefixtures("ctrl_c")


def learner(data=BATCHES, *, model=None, callbacks=(), rule=None, **options):
    torch.manual_seed(0)
    model = model or fl.Chain(fl.Dense(2, 8, fl.relu), fl.Dropout(0.2), fl.Dense(8, 2))
    rule = rule or fl.Adam(1e-2)
    loss = None if "step" in options else fl.losses.logitcrossentropy
    options = {"defaults": False, **options}
    return fl.Learner(model, data, rule, loss, callbacks=callbacks, **options)


def same(a, b):
    return fl.tree.allclose((a.model, a.state), (b.model, b.state), rtol=0, atol=0)


def on(event, f, reads=(), writes=()):
    """A callback that calls a function at one event."""
    return type("On", (fl.Callback,), {event: lambda self, run: f(run), "reads": reads, "writes": writes})()


def leave_at(phase, number):
    def f(run):
        if (run.phase, run.batch_number, run.epoch) == (phase, number, 2):
            raise fl.CancelFit("left")

    return on("step_end", f)


# What a callback or a phase puts into the run stays its own


@pytest.mark.parametrize("jit", [False, True])
def test_a_model_that_a_callback_puts_back_is_not_written_over(jit):
    best = fl.Chain(fl.Dense(2, 8, fl.relu), fl.Dropout(0.2), fl.Dense(8, 2))
    before = fl.tree.clone(best)

    def reset(run):
        run.model = best if run.epoch == 2 else run.learner.model
        run.state = run.learner.state

    begun = learner(callbacks=[on("epoch_begin", reset, writes=("model", "state"))], jit=jit)
    fl.fit(begun, 3)
    assert fl.tree.allclose(best, before, rtol=0, atol=0)
    assert fl.tree.norm(begun.model) > 0
    assert fl.fit(begun, 1).step == 4


def test_a_model_that_a_phase_puts_back_is_not_written_over():
    class Back(fl.TrainingPhase):
        def step(self, run):
            run.model, run.state = run.learner.model, run.learner.state
            run.train()

    begun = learner(phases=[Back()])
    fitted = fl.fit(begun, 2)
    assert same(fl.fit(begun, 1), fl.fit(begun, 1))
    assert fitted.step == 8


def test_memory_is_that_of_one_learner():
    def count(run):
        run.memory.setdefault("t", torch.zeros(1)).add_(1)

    once = fl.fit(learner(callbacks=[on("step_end", count)]), 1)
    twice = fl.fit(once, 1)
    assert (once.memory["On"]["t"].item(), twice.memory["On"]["t"].item()) == (4.0, 8.0)


# Data of others


class Drawn:
    """Batches in an order that is drawn as they are made, each with noise."""

    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        left = list(range(8))
        if self.kind == "ours":
            order = fl.random.permutation(8).tolist()
        while left:
            i = {
                "torch": lambda: int(torch.randint(len(left), ())),
                "numpy": lambda: int(np.random.randint(len(left))),
                "python": lambda: random.randrange(len(left)),
                "ours": lambda: left.index(order[8 - len(left)]),
            }[self.kind]()
            row = left.pop(i)
            yield (
                X[row : row + 3] + 0.1 * torch.rand(()) + np.random.rand() * random.random(),
                Y[row : row + 3],
            )


class Batches(fl.Callback):
    reads = ("batch",)

    def init(self):
        return {"seen": []}

    def step_end(self, run):
        if run.phase == "training":
            run.memory["seen"].append(run.batch[0][0, 0].item())


KINDS = ["torch", "numpy", "python", "ours"]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=6, deadline=None)
@given(at=st.integers(1, 7), event=st.sampled_from(["step_begin", "step_end"]))
def test_a_stream_that_draws_goes_on_where_it_was_left(kind, at, event):
    def f(run):
        if run.epoch == 2 and run.batch_number == at:
            raise fl.CancelFit("left")

    whole = fl.fit(learner(Drawn(kind), callbacks=[Batches()]), 3)
    left = fl.fit(learner(Drawn(kind), callbacks=[Batches(), on(event, f)]), 3)
    assert left.batch == at
    gone_on = fl.fit(left.replace(callbacks=(Batches(),)), 2)
    assert gone_on.memory["Batches"] == whole.memory["Batches"]
    assert same(whole, gone_on)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_that_draws_has_another_order_in_each_epoch_and_the_same_in_each_run(kind):
    a, b = (
        fl.fit(learner(Drawn(kind), callbacks=[Batches()]), 2).memory["Batches"]["seen"] for _ in range(2)
    )
    assert a == b
    assert a[:8] != a[8:]


@pytest.mark.parametrize(
    "options", [{}, {"generator": None}, {"num_workers": 1}], ids=["plain", "generator", "worker"]
)
def test_a_shuffled_loader_of_torch_goes_on_where_it_was_left(options):
    def data():
        given = {**options}
        if "generator" in given:
            given["generator"] = torch.Generator().manual_seed(0)
        rows = torch.utils.data.TensorDataset(X, Y)
        return torch.utils.data.DataLoader(rows, batch_size=6, shuffle=True, **given)

    whole = fl.fit(learner(data(), callbacks=[Batches()]), 3)
    left = fl.fit(learner(data(), callbacks=[Batches(), leave_at("training", 2)]), 3)
    gone_on = fl.fit(left.replace(callbacks=(Batches(),), data=data()), 2)
    assert gone_on.memory["Batches"] == whole.memory["Batches"]
    assert same(whole, gone_on)


def test_the_generator_of_a_loader_of_torch_is_left_as_it_was():
    generator = torch.Generator().manual_seed(5)
    rows = torch.utils.data.TensorDataset(X, Y)
    before = generator.get_state()
    fl.fit(learner(torch.utils.data.DataLoader(rows, batch_size=6, shuffle=True, generator=generator)), 2)
    assert torch.equal(generator.get_state(), before)


def test_data_that_has_become_shorter_is_an_error():
    left = fl.fit(learner(callbacks=[leave_at("training", 3)]), 3)
    for data in (BATCHES[:2], iter_of(BATCHES[:2])):
        with pytest.raises(ValueError, match="and the learner has taken 3"):
            fl.fit(left.replace(data=data, callbacks=()), 1)


def iter_of(batches):
    return type("Stream", (), {"__iter__": lambda self: iter(batches)})()


@pytest.mark.parametrize("number", [1, 2])
def test_a_fit_that_was_left_inside_validation_goes_on_to_the_same_bits(number):
    data = {"training": BATCHES, "validation": BATCHES[:3]}
    options = {"defaults": True, "progress": False}
    whole = fl.fit(learner(data, **options), 3)
    begun = learner(data, **options)
    left = fl.fit(begun.replace(callbacks=(*begun.callbacks, leave_at("validation", number))), 3)
    assert (left.phase, left.batch) == (1, number)
    gone_on = fl.fit(left.replace(callbacks=begun.callbacks), 2)
    assert same(whole, gone_on)
    assert gone_on.history["validation", "loss"] == whole.history["validation", "loss"]


def test_what_callbacks_draw_outside_steps_is_a_function_of_the_learner():
    def draws(seed):
        seen = []
        calls = [
            on(e, lambda run: seen.append(torch.rand(()).item()))
            for e in ("fit_begin", "epoch_begin", "epoch_end")
        ]
        begun = learner(callbacks=calls)
        torch.manual_seed(seed)
        fl.fit(begun, 2)
        return seen

    assert draws(1) == draws(2)
    assert len(set(draws(1))) == 5


# Cancelling, errors and signals at odd moments


@pytest.mark.parametrize("event", ["fit_begin", "epoch_begin", "epoch_end", "fit_end"])
def test_a_fit_may_be_cancelled_anywhere(event):
    def stop(run):
        raise fl.CancelFit("enough")

    ended = []
    calls = [on(event, stop), on("fit_end", lambda run: ended.append(run.step))]
    fitted = fl.fit(learner(callbacks=calls), 2)
    assert fitted.stopped == "enough"
    assert len(ended) == 1


@pytest.mark.parametrize(
    ("event", "cancel", "advice"),
    [
        ("step_end", fl.CancelStep, "the step is taken; raise it up to backward_end"),
        ("epoch_begin", fl.CancelStep, "the step is taken"),
        ("fit_begin", fl.CancelEpoch, "no epoch is under way"),
        ("epoch_end", fl.CancelEpoch, "no epoch is under way"),
    ],
)
def test_what_can_not_be_cancelled_any_more_is_an_error_that_says_where(event, cancel, advice):
    def stop(run):
        raise cancel

    with pytest.raises(
        fl.CallbackError, match=rf"On\.{event} raised {cancel.__name__}, which comes too late.*{advice}"
    ):
        fl.fit(learner(callbacks=[on(event, stop)]), 1)


def test_an_error_in_a_callback_is_raised_after_the_others_have_heard():
    raised = []

    def once(run):
        if run.step == 2 and not raised:
            raised.append(run.step)
            raise ZeroDivisionError

    begun = learner(defaults=True, progress=False, rule=fl.Descent(0.1))
    with pytest.raises(fl.CallbackError) as caught:
        fl.fit(begun.replace(callbacks=(on("step_end", once), *begun.callbacks)), 1)
    gone_on = fl.fit(caught.value.learner.replace(callbacks=begun.callbacks), 1)
    assert gone_on.history["training", "loss"] == fl.fit(begun, 1).history["training", "loss"]
    assert len(gone_on.history.steps) == 4


def test_a_learner_whose_update_was_half_done_is_not_said_to_go_on():
    @fl.functor
    class Breaks:
        def init(self, x):
            return None

        def apply(self, state, x, g):
            raise ZeroDivisionError

    class Half(fl.Step):
        def loss(self, model, batch):
            return sum(m(batch[0]).square().sum() for m in model.values())

        def update(self, model, state, grads, *, donate=False):
            fl.update(state["a"], model["a"], grads["a"], donate=donate)
            raise ZeroDivisionError

    model = {"a": fl.Dense(2, 1), "b": fl.Dense(2, 1)}
    begun = learner(model=model, rule={"a": fl.Adam(), "b": fl.Adam()}, step=Half())
    with pytest.raises(ZeroDivisionError) as caught:
        fl.fit(begun, 1)
    assert "The update was half done" in caught.value.__notes__[0]
    assert fl.tree.norm(begun.model) > 0


def press(run):
    signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("event", ["epoch_begin", "epoch_end", "step_begin"])
def test_ctrl_c_at_any_event_ends_the_fit(event, capsys):
    fitted = fl.fit(learner(callbacks=[on(event, press)]), 3)
    assert fitted.stopped == "interrupted"
    assert "go on with fit(learner, " in capsys.readouterr().err


def test_ctrl_c_as_the_last_epoch_ends_leaves_nothing_to_go_on_with(capsys):
    fitted = fl.fit(learner(callbacks=[on("epoch_end", press)]), 1)
    assert (fitted.epoch, fitted.stopped) == (1, "interrupted")
    text = capsys.readouterr().err
    assert "stands there: its last epoch is complete" in text
    assert "fit(" not in text


def test_ctrl_c_in_a_fit_inside_a_fit_ends_both():
    inner = []

    def nested(run):
        inner.append(fl.fit(learner(callbacks=[on("step_begin", press)]), 5))

    outer = fl.fit(learner(callbacks=[on("epoch_end", nested)]), 5)
    assert (inner[0].stopped, inner[0].step) == ("interrupted", 1)
    assert (outer.stopped, outer.epoch) == ("interrupted", 1)


def test_a_fit_inside_a_fit_changes_nothing_in_the_other():
    def nested(run):
        fl.fit(learner(), 1)

    assert same(fl.fit(learner(callbacks=[on("step_end", nested)]), 1), fl.fit(learner(), 1))


def test_ctrl_c_in_a_cycle_says_how_a_cycle_goes_on(capsys):
    fl.fit_one_cycle(learner(callbacks=[on("step_begin", press)]), 3, 0.1)
    assert "give the same call again with resume=True" in capsys.readouterr().err


# Learners


def test_a_new_rule_keeps_the_moments_that_fit():
    fitted = fl.fit(learner(), 1)
    other = fitted.replace(rule=fl.Adam(1e-4))
    assert fl.tree.allclose(
        other.state.layers[0].weight.state, fitted.state.layers[0].weight.state, rtol=0, atol=0
    )
    assert other.state.layers[0].weight.rule.lr == 1e-4
    assert fitted.replace(rule=fl.Descent(0.1)).state.layers[0].weight.rule == fl.Descent(0.1)


def test_a_learner_may_be_pickled_and_goes_on():
    fitted = fl.fit(learner(defaults=True, progress=False), 1)
    again = pickle.loads(pickle.dumps(fitted))
    assert same(fl.fit(again, 1), fl.fit(fitted, 1))


def test_validate_gives_the_means_over_samples_and_changes_nothing():
    data = {"training": BATCHES, "validation": [(X[:20], Y[:20]), (X[20:], Y[20:])]}
    fitted = fl.fit(learner(data, defaults=True, progress=False, metrics=[fl.metrics.accuracy]), 1)
    found = fl.validate(fitted)
    assert found == {
        "loss": pytest.approx(fl.losses.logitcrossentropy(fitted.model(X), Y).item(), rel=1e-5),
        "accuracy": pytest.approx((fitted.model(X).argmax(1) == Y).float().mean().item()),
    }
    assert found == {name: fitted.history.last("validation", name) for name in found}
    assert len(fitted.history.epochs) == 2
    with pytest.raises(ValueError, match=r"write validate\(learner, data\)"):
        fl.validate(learner())


Losses = namedtuple("Losses", "penalty loss")


def test_train_takes_the_loss_of_a_named_tuple_as_withgradient_does():
    def loss(model, x, y):
        return Losses(torch.zeros(()), fl.losses.logitcrossentropy(model(x), y))

    model = fl.Dense(2, 2)
    new, _ = fl.train(loss, model, BATCHES, fl.setup(fl.Descent(0.1), model))
    by_loss, _ = fl.train(lambda *a: loss(*a).loss, model, BATCHES, fl.setup(fl.Descent(0.1), model))
    assert fl.tree.allclose(new, by_loss, rtol=0, atol=0)
    assert not fl.tree.allclose(new, model)


@pytest.mark.parametrize(
    ("batch", "n"),
    [
        ((X[:3], Y[:3]), 3),
        ({"text": ["a", "b", "c", "d"], "y": torch.zeros(4)}, 4),
        ((["a", "b"], torch.zeros(2)), 2),
        ((["a", "b"], ["c", "d"]), 2),
        (torch.zeros(()), 1),
        ((np.zeros((5, 2)), None), 5),
    ],
)
def test_a_batch_has_as_many_samples_as_its_first_array_has_rows(batch, n):
    assert _samples(batch) == n


def test_a_loss_may_be_a_number_alone_and_one_without_a_loss_is_an_error():
    class Alone(fl.Step):
        def loss(self, model, batch):
            return fl.losses.logitcrossentropy(model(batch[0]), batch[1])

    class Without(fl.Step):
        def loss(self, model, batch):
            return {"los": model(batch[0]).sum()}

    assert same_model(fl.fit(learner(step=Alone()), 1), fl.fit(learner(), 1))
    with pytest.raises(ValueError, match="its dict needs the entry 'loss'"):
        fl.fit(learner(step=Without()), 1)


def same_model(a, b):
    return fl.tree.allclose(a.model, b.model, rtol=0, atol=0)
