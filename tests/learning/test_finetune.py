"""Fine-tuning: what stays while the backbone is frozen, the rates, and what is left as it was."""

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.finetune import finetune
from fluxlike.learning.one_cycle import cycle_of
from tests.learning.kill import Kill

torch.manual_seed(0)
X, Y = torch.randn(32, 4), torch.randint(0, 3, (32,))
DATA = fl.DataLoader((X, Y), batch_size=8, shuffle=True)
BODY = ".layers[0]"


def model():
    body = fl.Chain(fl.Dense(4, 8), fl.BatchNorm(8), fl.relu, fl.Dropout(0.5))
    return fl.Chain(body, fl.Dense(8, 3))


def learner(model, rule=None, callbacks=(), **settings):
    settings = {"key": fl.Key(0), "progress": False, **settings}
    rule = rule or fl.Adam(0.5)
    return fl.Learner(model, DATA, rule, fl.losses.logitcrossentropy, callbacks=callbacks, **settings)


class Watch(fl.Callback):
    """Remembers the rates and the model after each step."""

    reads = ("state", "model")

    def init(self):
        return {"body": [], "head": [], "models": []}

    def step_end(self, run):
        body, head = run.state.layers[0].layers[0].weight, run.state.layers[1].weight
        run.memory["body"].append(float(body.rule.lr))
        run.memory["head"].append(float(head.rule.lr))
        run.memory["models"].append(fl.tree.clone(run.model))


def same(a, b):
    leaves = zip(fl.fleaves(a), fl.fleaves(b), strict=True)
    return all(torch.equal(x, y) for x, y in leaves)


def test_no_bit_of_the_backbone_changes_while_it_is_frozen_and_all_move_afterwards():
    start = learner(model(), callbacks=[Watch()])
    fitted = finetune(start, 2, 0.1, frozen_epochs=2)
    for now in fitted.memory["Watch"]["models"][:8]:
        assert same(now.layers[0], start.model.layers[0])  # the statistics of BatchNorm too
        assert not same(now.layers[1], start.model.layers[1])
    after = [x for x, y in zip(fl.fleaves(fitted.model), fl.fleaves(start.model), strict=True) if x.equal(y)]
    assert after == []


def test_the_rates_are_the_promised_ones():
    memory = finetune(learner(model(), callbacks=[Watch()]), 3, 0.1).memory["Watch"]
    first, second = cycle_of(4, 0.1, pct=0.99), cycle_of(12, 0.05, div=5.0)
    assert memory["head"][:4] == pytest.approx([first(t) for t in range(4)])
    assert memory["head"][4:] == pytest.approx([second(t) for t in range(12)])
    assert memory["body"][4:] == pytest.approx([second(t) / 10 for t in range(12)])
    assert max(memory["head"][4:]) == pytest.approx(0.05)
    assert max(memory["body"][4:]) == pytest.approx(0.005)


def test_it_is_what_freeze_and_adjust_do_by_hand():
    torch.manual_seed(1)
    start_model = fl.Chain(fl.Chain(fl.Dense(4, 8), fl.BatchNorm(8), fl.relu), fl.Dense(8, 3))
    data = fl.DataLoader((X, Y), batch_size=8)
    start = learner(start_model).replace(data={"training": data})
    fitted = finetune(start, 2, 0.1)

    def loss(m, x, y):
        return fl.losses.logitcrossentropy(m(x), y)

    model, state = start_model, fl.freeze(fl.setup(fl.Adam(0.5), start_model), BODY)
    schedule = cycle_of(4, 0.1, pct=0.99)
    model = fl.at(model, BODY).apply(fl.testmode)
    for t, (x, y) in enumerate(data):
        state = fl.adjust(state, schedule(t))
        model, state = fl.update(state, model, fl.gradient(loss, model, x, y))
    model, state = fl.at(model, BODY).apply(fl.automode), fl.thaw(state)
    schedule = cycle_of(8, 0.05, div=5.0)
    for t, (x, y) in enumerate([*data, *data]):
        state = fl.adjust(state, schedule(t))
        state = fl.adjust(state, schedule(t) / 10, where=BODY)
        model, state = fl.update(state, model, fl.gradient(loss, model, x, y))
    assert fl.tree.allclose(fitted.model, model, rtol=1e-5, atol=1e-6)
    assert fl.tree.allclose(fitted.state, fl.adjust(state, 0.5), rtol=1e-4, atol=1e-6)


def test_the_backward_of_a_frozen_backbone_is_not_computed():
    backwards = []

    @fl.custom_gradient
    def through(x):
        def backward(grad):
            backwards.append(0)
            return grad

        return x.clone(), backward

    class Own(fl.Step):
        def loss(self, model, batch):
            x = through(model.layers[0](batch[0]))
            return {"loss": fl.losses.logitcrossentropy(model.layers[1](x), batch[1])}

    start = fl.Learner(model(), DATA, fl.Adam(), step=Own(), defaults=False, key=fl.Key(0))
    finetune(start, 1, 0.1)
    assert len(backwards) == 4  # of the epoch in which all is trained


def test_rates_modes_steps_and_what_was_frozen_before_are_as_they_were():
    start_model = fl.at(model(), ".layers[0].layers[1]").apply(fl.testmode)
    start = learner(start_model, lambda path: fl.Adam(0.5) if path.startswith(BODY) else fl.Momentum(0.25))
    start = start.replace(state=fl.freeze(start.state, ".layers[0].layers[0].bias"))
    fitted = finetune(start, 1, 0.1)
    assert repr(fitted.model) == repr(start.model)  # which shows what is pinned
    assert fitted.state.layers[0].layers[0].weight.rule == fl.Adam(0.5)
    assert fitted.state.layers[1].weight.rule == fl.Momentum(0.25)
    frozen = {path for path, entry in entries(fitted.state) if entry.frozen}
    assert frozen == {".layers[0].layers[0].bias"}
    assert fitted.steps is start.steps
    assert fitted.callbacks == start.callbacks
    assert (fitted.epoch, fitted.step) == (2, 8)
    assert not any("cycle" in name for name in fitted.memory)


def entries(state):
    found = []
    fl.fmap_with_path(
        lambda path, x: found.append((path, x)),
        state,
        is_leaf=lambda x: isinstance(x, fl.ParamState),
    )
    return [(path, x) for path, x in found if isinstance(x, fl.ParamState)]


def test_a_compiled_learner_has_the_numbers_of_an_eager_one():
    start_model = fl.Chain(fl.Chain(fl.Dense(4, 8), fl.BatchNorm(8), fl.relu), fl.Dense(8, 3))
    eager, compiled = (
        finetune(learner(start_model, fl.Momentum(), jit=jit), 2, 0.05) for jit in (False, True)
    )
    assert fl.tree.allclose(eager.model, compiled.model, rtol=1e-3, atol=1e-4)


def test_a_backbone_can_be_part_of_a_torch_module():
    net = torch.nn.Sequential()
    net.stem = torch.nn.Linear(4, 8)
    net.norm = torch.nn.BatchNorm1d(8)
    net.fc = torch.nn.Linear(8, 3)
    start_model = fl.from_torch(net)
    start = learner(start_model)
    with pytest.raises(ValueError, match=r"has 3 children .*write backbone=\('.stem', '.norm'\)"):
        finetune(start, 0, 0.1)

    class Keep(fl.Callback):
        reads = ("model",)

        def epoch_end(self, run):
            run.memory.setdefault("models", []).append(fl.tree.clone(run.model))

    start = learner(start_model, callbacks=[Keep()])
    fitted = finetune(start, 1, 0.1, backbone=(".stem", ".norm"))
    frozen, last = fitted.memory["Keep"]["models"]
    for name in ("stem", "norm"):
        assert same(getattr(frozen, name), getattr(start_model, name))
        assert not same(getattr(last, name), getattr(start_model, name))
    assert not same(frozen.fc, start_model.fc)


@pytest.mark.parametrize("step", [2, 4, 5, 6, 9])
def test_a_killed_run_goes_on_in_its_part_to_the_same_bits(tmp_path, step):
    def fresh(folder, *more):
        torch.manual_seed(1)
        saving = fl.callbacks.Checkpointer(folder, every=2, background=False)
        return learner(model(), callbacks=[saving, *more])

    whole = finetune(fresh(tmp_path / "whole"), 2, 0.1)
    with pytest.raises(fl.CallbackError) as caught:
        finetune(fresh(tmp_path / "killed", Kill(step)), 2, 0.1)
    assert caught.value.learner.step == step
    assert caught.value.learner.state.layers[1].weight.rule == fl.Adam(0.5)
    resumed = finetune(fresh(tmp_path / "killed"), 2, 0.1, resume=True)
    assert resumed.step == whole.step == 12
    assert same(resumed.model, whole.model)
    assert same(resumed.state, whole.state)
    assert repr(resumed.state) == repr(whole.state)


def test_a_fit_that_is_stopped_while_the_backbone_is_frozen_ends_there():
    class Stop(fl.Callback):
        def step_end(self, run):
            raise fl.CancelFit("enough")

    fitted = finetune(learner(model(), callbacks=[Stop()]), 2, 0.1)
    assert (fitted.stopped, fitted.step) == ("enough", 1)
    assert not any(entry.frozen for _, entry in entries(fitted.state))


def test_the_backbone_stays_under_a_train_of_ones_own_too():
    class Own(fl.Step):
        def train(self, model, state, batch):
            loss, grads = fl.withgradient(lambda m, x, y: fl.losses.logitcrossentropy(m(x), y), model, *batch)
            return *fl.update(state, model, grads), {"loss": loss}

    class Keep(fl.Callback):
        reads = ("model",)

        def epoch_end(self, run):
            run.memory.setdefault("models", []).append(fl.tree.clone(run.model))

    start = fl.Learner(model(), DATA, fl.Adam(), step=Own(), defaults=False, callbacks=[Keep()])
    frozen, last = finetune(start, 1, 0.1).memory["Keep"]["models"]
    assert same(frozen.layers[0], start.model.layers[0])
    assert not same(last.layers[0], start.model.layers[0])
    assert repr(last) == repr(start.model)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"backbone": lambda m: m}, "the whole model, so there is no head"),
        ({"backbone": ".layers"}, "nothing is left to train beside the backbone"),
        ({"frozen_epochs": -1}, "frozen_epochs=-1"),
        ({"epochs": 0}, "over 0 epochs"),
    ],
    ids=["whole", "nothing left", "frozen epochs", "epochs"],
)
def test_what_makes_no_sense_is_an_error(settings, text):
    with pytest.raises(ValueError, match=text):
        finetune(learner(model()), settings.pop("epochs", 1), 0.1, **settings)
