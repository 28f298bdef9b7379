"""What a learner takes, and what it says to what it does not take."""

from __future__ import annotations

import functools

import pytest
import torch

import fluxlike as fl

X, Y = torch.ones(4, 2), torch.zeros(4, 1)
BATCHES = [(X, Y)]


def learner(**changes):
    options = {"model": fl.Dense(2, 1), "data": BATCHES, "rule": fl.Adam(), "loss": fl.losses.mse, **changes}
    return fl.Learner(**options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": None}, "needs a loss of outputs and targets, such as fl.losses.mse, or a step="),
        ({"step": print}, "and not both"),
        ({"loss": 3.0}, "the loss is a float; write a function of outputs and targets"),
        (
            {"loss": None, "step": fl.Step},
            "write a function of model, state and batch, or an object of a Step's class",
        ),
        ({"loss": fl.Step()}, r"the loss is a Step; write Learner\(model, data, rule, step=…\)"),
        ({"data": (X, Y)}, r"a learner wants batches: write fl.DataLoader\(\(x, y\), batch_size=64\)"),
        (
            {"data": {"training": BATCHES, "test": BATCHES}},
            "data has 'test', which no phase takes; give phases=",
        ),
        (
            {"phases": [fl.ValidationPhase()]},
            "the phase 'validation' has no data; give data as a dict with 'validation'",
        ),
        ({"phases": [fl.TrainingPhase]}, r"is no phase; write fl.TrainingPhase\(\)"),
        ({"phases": [fl.Phase()]}, "the phase Phase has no name; write name = 'mine' in the class"),
        (
            {"rule": {"a": fl.Adam()}},
            "rule is a dict of 'a', so the model is a dict of the same; found Dense",
        ),
        ({"rule": {"a": fl.Adam()}, "model": {"b": fl.Dense(2, 1)}}, "found a dict of 'b'"),
        ({"metrics": [print], "defaults": False}, r"write callbacks=\[fl.callbacks.Metrics"),
        (
            {"loss": lambda model, x, y: fl.losses.mse(model(x), y)},
            r"the loss <lambda>\(model, x, y\) can't be called with outputs and.*fl\.train\(loss, model",
        ),
        (
            {"model": (1.0, X)},
            r"calls the model, and a tuple can't be called; for a model of several parts write",
        ),
    ],
    ids=lambda x: None if isinstance(x, dict) else x[:30],
)
def test_what_a_learner_does_not_take_is_an_error_that_says_what_to_write(changes, message):
    with pytest.raises((TypeError, ValueError), match=message):
        learner(**changes)


@pytest.mark.parametrize(
    "loss",
    [
        torch.nn.MSELoss(),
        torch.nn.functional.mse_loss,
        functools.partial(lambda model, y, t: (y - t).square().mean(), None),
        functools.wraps(lambda model, x, y: None)(lambda *args: (args[0] - args[1]).square().mean()),
        fl.jit(fl.losses.mse),
        torch.dist,
    ],
)
def test_a_loss_whose_signature_takes_outputs_and_targets_is_taken_whatever_it_is(loss):
    assert learner(loss=loss).epoch == 0


@fl.functor
class Forward:
    def __init__(self):
        self.fc = fl.Dense(2, 1)

    def forward(self, x):
        return self.fc(x)


def by_learner(model, loss, state):
    fl.Learner(model, BATCHES, fl.Adam(), fl.losses.mse)


def by_train(model, loss, state):
    fl.train(loss, model, BATCHES, state)


@pytest.mark.parametrize("train", [by_learner, by_train])
def test_a_model_with_forward_and_no_call_is_told_to_define_it(train):
    model = Forward()
    with pytest.raises(
        TypeError, match=r"a Forward can't be called; define __call__ in Forward \(fluxlike calls"
    ):
        train(model, lambda m, x, y: fl.losses.mse(m(x), y), fl.setup(fl.Adam(), model))


def test_a_loss_may_call_forward_by_its_name():
    model = Forward()
    fl.train(lambda m, x, y: fl.losses.mse(m.forward(x), y), model, BATCHES, fl.setup(fl.Adam(), model))


@pytest.mark.parametrize(
    ("loss", "batch", "text"),
    [
        (
            fl.losses.mse,
            (X, Y),
            r"the batch, a tuple of 2, and the loss mse\(pred, target\) does not take them",
        ),
        (
            lambda model, batch: model(batch),
            {"x": X},
            r"the batch, a dict of 'x', and the loss <lambda>\(model, batch\)",
        ),
        (lambda model: 0.0, X, r"the batch, a Tensor, and the loss <lambda>\(model\)"),
    ],
)
def test_a_loss_that_does_not_take_the_batch_of_train_is_told_what_it_gets(loss, batch, text):
    model = fl.Dense(2, 1)
    with pytest.raises(TypeError, match=text) as caught:
        fl.train(loss, model, [batch], fl.setup(fl.Adam(), model))
    assert "write lambda model, x, y: loss(model(x), y)" in str(caught.value)


def test_a_type_error_from_inside_a_loss_of_train_is_left_as_it_is():
    model = fl.Dense(2, 1)
    with pytest.raises(TypeError, match="unsupported operand"):
        fl.train(lambda m, x, y: m(x) + "y", model, BATCHES, fl.setup(fl.Adam(), model))


@pytest.mark.parametrize(
    ("begun", "message"),
    [
        (learner(data=[X]), r"needs batches \(x, y\), found a Tensor; write a subclass of fl.Step"),
        (learner(data=[{"x": X, "y": Y}]), "found a dict of 'x', 'y'"),
        (learner(data=[(X, X, Y)]), "found a tuple of 3"),
        (learner(data=[]), "the data of training gave no batch in epoch 1"),
        (learner(loss=None, step=lambda m, s, b: m), "returned a Dense; return model, state, out"),
    ],
    ids=["a tensor", "a dict", "three", "nothing", "a step that returns the model"],
)
def test_batches_and_steps_of_another_form_are_errors_that_say_what_to_write(begun, message):
    with pytest.raises((TypeError, ValueError), match=message):
        fl.fit(begun)


def test_a_generator_is_told_apart_from_data_that_begins_anew():
    with pytest.raises(ValueError, match="which can be iterated once, and there are 2 epochs"):
        fl.fit(learner(data=(batch for batch in BATCHES)), 2)


@pytest.mark.parametrize("epochs", [-1, 1.5, True, "3"])
def test_epochs_are_a_whole_number(epochs):
    with pytest.raises(ValueError, match="write how many epochs"):
        fl.fit(learner(), epochs)


def test_fit_takes_a_learner():
    with pytest.raises(
        TypeError, match=r"fit takes a Learner first, found a Dense: write fit\(learner, 10\)"
    ):
        fl.fit(fl.Dense(2, 1), 10)


def test_train_takes_the_loss_first():
    model = fl.Dense(2, 1)
    with pytest.raises(TypeError, match=r"found Dense and function: write train\(loss, model, data, state\)"):
        fl.train(model, fl.losses.mse, BATCHES, fl.setup(fl.Adam(), model))


def test_a_learner_does_not_change():
    with pytest.raises(AttributeError, match="cannot assign to field 'model'"):
        learner().model = fl.Dense(2, 1)


def test_replace_changes_what_is_named_and_nothing_else():
    begun = learner()
    other = begun.replace(rule=fl.Descent(0.1))
    assert other.model is begun.model
    assert other.state.weight.rule == fl.Descent(0.1)
    assert begun.state.weight.rule == fl.Adam()
    with pytest.raises(TypeError, match="a learner has no 'lr'; it has model, state"):
        begun.replace(lr=1.0)


@pytest.mark.parametrize(
    ("use", "error", "write"),
    [
        (lambda learner: learner(torch.ones(1, 2)), TypeError, r"write learner\.model\(x\)"),
        (lambda learner: learner.predict, AttributeError, r"write learner\.model\(x\)"),
        (lambda learner: learner.parameters(), AttributeError, r"write fl\.trainables\(learner\.model\)"),
        (lambda learner: learner.eval(), AttributeError, r"its model is learner\.model, .*gradient tests"),
        (lambda learner: learner.train(), AttributeError, r"write learner = fl\.fit\(learner, 10\)"),
        (lambda learner: learner.nothing, AttributeError, "a learner has no attribute 'nothing'$"),
    ],
)
def test_what_is_a_method_elsewhere_is_an_error_that_says_what_to_write(use, error, write):
    with pytest.raises(error, match=write):
        use(learner())


def test_the_seed_of_torch_is_that_of_a_learner_without_a_key():
    def key():
        torch.manual_seed(5)
        return learner().key.data

    assert torch.equal(key(), key())


def test_it_says_where_it_stands():
    assert repr(fl.fit(learner(), 3)).endswith("phases training: epoch 3, step 3)")


def test_data_of_validation_may_be_none():
    batches = [(torch.ones(2, 1), torch.ones(2, 1))]
    learner = fl.Learner(fl.Dense(1, 1), (batches, None), fl.Descent(0.1), fl.losses.mse)
    assert list(learner.data) == ["training"]


def test_data_need_no_iterator_beside_an_epoch_by_its_number():
    asked = []

    class ByNumber:
        def epoch(self, number, start=0):
            asked.append((number, start))
            return iter([(X + number, Y)] * (3 - start))

    fitted = fl.fit(learner(data=(ByNumber(), ByNumber()), progress=False), 2)
    assert (fitted.epoch, fitted.step) == (2, 6)
    assert asked == [(0, 0), (0, 0), (1, 0), (1, 0)]  # training and validation of either epoch
    fl.fit(fitted.replace(batch=2, random=None))
    assert asked[4] == (2, 2)


def test_data_that_are_no_batches_are_refused_at_once():
    with pytest.raises(TypeError, match=r"data of validation is of int, .* give a DataLoader"):
        fl.Learner(fl.Dense(1, 1), {"training": [], "validation": 3}, fl.Descent(0.1), fl.losses.mse)


def test_a_data_set_of_samples_is_no_data_of_batches():
    with pytest.raises(
        TypeError, match=r"is a TensorDataset of samples, and a learner wants batches: write fl.DataLoader"
    ):
        learner(data=torch.utils.data.TensorDataset(X, Y))


def test_an_edited_model_keeps_the_moments_of_what_was_left_in_place():
    model = fl.Chain(fl.Dense(2, 3), fl.Dense(3, 1))
    fitted = fl.fit(learner(model=model, progress=False), 2)
    edited = fitted.replace(model=fl.at(fitted.model, lambda m: m.layers[1]).set(fl.Dense(3, 2)))
    kept, new = (edited.state.layers[i].weight.state for i in range(2))
    assert fl.tree.allclose(kept, fitted.state.layers[0].weight.state, rtol=0, atol=0)
    assert fl.tree.norm(new) == 0


@pytest.mark.parametrize("jit", [False, True])
def test_a_loss_that_nothing_can_be_learnt_from_is_an_error(jit):
    def errors(outputs, targets):
        return (outputs.argmax(1, keepdim=True) != targets).float().mean()

    with pytest.raises(
        ValueError, match="the loss does not depend on the model by anything that can be differentiated"
    ):
        fl.fit(learner(loss=errors, jit=jit, progress=False))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: fl.Learner(fl.DataLoader((X, Y), 2), fl.Dense(2, 1), fl.Adam(), fl.losses.mse),
            "the model is a DataLoader",
        ),
        (
            lambda: fl.Learner(fl.Dense(2, 1), BATCHES, fl.losses.mse, fl.Adam()),
            "the loss is a rule; write Learner",
        ),
        (
            lambda: learner(loss=torch.nn.MSELoss),
            r"the loss is the class MSELoss; give an object: MSELoss\(\)",
        ),
        (lambda: learner().fit(2), r"no attribute 'fit'; write learner = fl.fit\(learner, 10\)"),
        (
            lambda: fl.fit(learner(data=fl.DataLoader((X, Y), 9, partial=False))),
            "partial=False leaves them out",
        ),
        (lambda: fl.schedules.OneCycle(1e-2, 1000), r"whole number of steps first.*OneCycle\(1000, 1e-2\)"),
    ],
    ids=["model and data", "loss and rule", "a class", "a method", "fewer than a batch", "one cycle"],
)
def test_what_is_easily_mixed_up_is_an_error_that_says_what_to_write(make, message):
    with pytest.raises((TypeError, ValueError, AttributeError), match=message):
        make()


def test_one_callback_needs_no_list():
    assert len(learner(callbacks=fl.callbacks.GarbageCollect(), defaults=False).callbacks) == 1


def test_a_step_that_only_trains_is_refused_validation_data_at_once():
    class Trains(fl.Step):
        def train(self, model, state, batch):
            return model, state, 0.0

    with pytest.raises(ValueError, match="the step Trains says how to train, and not how to validate"):
        learner(loss=None, step=Trains(), data=(BATCHES, BATCHES))
