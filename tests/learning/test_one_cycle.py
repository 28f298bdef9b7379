"""The one-cycle fit: its rates, what it leaves as it was, and its resumption."""

import warnings

import pytest
import torch

import fluxlike as fl
from fluxlike.learning.callbacks.scheduler import Scheduler
from fluxlike.learning.one_cycle import cycle_of, fit_one_cycle
from tests.learning.kill import Kill

torch.manual_seed(0)
X = torch.randn(40, 4)
DATA = fl.DataLoader((X, X.sum(1, keepdim=True)), batch_size=8, shuffle=True)


class Rates(fl.Callback):
    """Remembers the hyperparameters of every step."""

    reads = ("state",)

    def init(self):
        return {"lr": [], "momentum": []}

    def step_end(self, run):
        if run.phase != "training":
            return
        rule = run.state.weight.rule
        run.memory["lr"].append(float(rule.lr))
        momentum = rule.betas[0] if hasattr(rule, "betas") else getattr(rule, "momentum", 0.0)
        run.memory["momentum"].append(float(momentum))


def learner(rule=None, callbacks=(), **settings):
    settings = {"key": fl.Key(0), "progress": False, **settings}
    model = settings.pop("model", None) or fl.Dense(4, 1)
    callbacks = (Rates(), *callbacks)
    return fl.Learner(model, DATA, rule or fl.Momentum(0.5), fl.losses.mse, callbacks=callbacks, **settings)


def of_torch(total, lr, pct, momentum):
    """The rates and momenta of torch's OneCycleLR."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    high, low = momentum
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants optimiser.step() first
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            lr,
            total,
            pct_start=pct,
            final_div_factor=1e5 / 25,
            max_momentum=high,
            base_momentum=low,
        )
        rates, momenta = [], []
        for _ in range(total):
            rates.append(optimiser.param_groups[0]["lr"])
            momenta.append(optimiser.param_groups[0]["momentum"])
            if len(rates) < total:
                scheduler.step()
    return rates, momenta


@pytest.mark.parametrize("pct", [0.25, 0.3])
@pytest.mark.parametrize("rule", [fl.Momentum(0.5), fl.Adam(0.5)], ids=["momentum", "betas"])
def test_the_cosine_form_has_the_rates_and_momenta_of_torchs_scheduler(rule, pct):
    fitted = fit_one_cycle(learner(rule), 4, 1e-3, pct=pct, momentum=(0.95, 0.85))
    rates, momenta = of_torch(20, 1e-3, pct, (0.95, 0.85))
    assert fitted.memory["Rates"]["lr"] == pytest.approx(rates, rel=1e-9)
    assert fitted.memory["Rates"]["momentum"] == pytest.approx(momenta, rel=1e-9)


def test_the_sine_form_has_the_rates_of_flux_training():
    fitted = fit_one_cycle(learner(), 20, 0.01, shape="sine")
    rates = fitted.memory["Rates"]["lr"]
    assert len(rates) == 100
    assert [f"{rates[i - 1]:.4g}" for i in (1, 13, 26, 63, 100)] == [
        "0.0004", "0.006972", "0.01", "0.007145", "0.0002095",
    ]  # fmt: skip


@pytest.mark.parametrize("shape", ["cosine", "sine"])
@pytest.mark.parametrize("total", [1, 2, 3, 4, 5])
def test_a_cycle_of_few_steps_begins_low_and_stays_below_its_top(total, shape):
    rates = [cycle_of(total, 1.0, shape=shape)(t) for t in range(total)]
    assert rates[0] == 1 / 25
    assert all(0 < rate <= 1 for rate in rates)


def test_a_fit_by_hand_with_a_scheduler_is_the_same():
    start = learner()
    cycled = fit_one_cycle(start, 3, 0.1)
    schedule = fl.schedules.OneCycle(14, 0.1, pct=(0.25 * 15 - 1) / 14)
    by_hand = fl.fit(start.replace(callbacks=(*start.callbacks, Scheduler(lr=schedule))), 3)
    assert fl.tree.allclose(cycled.model, by_hand.model, rtol=0, atol=0)


def test_afterwards_callbacks_and_hyperparameters_are_the_learners_own_again():
    rule = fl.OptimiserChain(fl.ClipGlobalNorm(1.0), fl.Adam(0.5, betas=(0.8, 0.99), weight_decay=0.1))
    start = fl.Learner(fl.Dense(4, 1), DATA, rule, fl.losses.mse, progress=False)
    fitted = fit_one_cycle(start, 2, 0.1, momentum=(0.95, 0.85))
    assert fitted.callbacks == start.callbacks
    assert fitted.state.weight.rule == rule
    assert fitted.state.weight.rule is fitted.state.bias.rule  # one object, as before
    assert set(fitted.memory) == {"StopOnNonFiniteLoss", "Metrics", "Recorder"}
    assert fitted.epoch == 2


def test_other_schedules_of_the_learner_go_on_and_one_of_the_rate_is_an_error():
    decay = Scheduler(weight_decay=lambda step: 0.01 * step)
    start = learner(fl.AdamW(0.5), callbacks=[decay])
    fitted = fit_one_cycle(start, 2, 0.1)
    assert fitted.state.weight.rule.weight_decay == pytest.approx(0.09)
    assert fitted.state.weight.rule.lr == 0.5
    rate = Scheduler(lr=lambda step: 0.1)
    with pytest.raises(ValueError, match=r"both write 'state\.lr'"):
        fit_one_cycle(learner(callbacks=[rate]), 2, 0.1)


def test_a_second_cycle_begins_anew():
    fitted = fit_one_cycle(fit_one_cycle(learner(), 2, 0.1), 2, 0.01)
    rates = fitted.memory["Rates"]["lr"]
    assert rates[0] == pytest.approx(0.1 / 25)
    assert rates[10] == pytest.approx(0.01 / 25)


def test_a_learner_in_mid_epoch_has_a_cycle_over_the_rest():
    class Stop(fl.Callback):
        def step_end(self, run):
            if run.step == 2:
                raise fl.CancelFit("enough")

    stopped = fl.fit(learner(callbacks=[Stop()]), 2).replace(callbacks=learner().callbacks, memory={})
    fitted = fit_one_cycle(stopped, 2, 0.1)
    rates = fitted.memory["Rates"]["lr"]
    assert len(rates) == 8
    assert rates[-1] == pytest.approx(0.1 / 1e5)


@pytest.mark.parametrize("step", [1, 7, 10, 14])
def test_a_killed_cycle_goes_on_to_the_same_bits(tmp_path, step):
    def fresh(folder, *more):
        torch.manual_seed(1)
        saving = fl.callbacks.Checkpointer(folder, every=2, background=False)
        return learner(callbacks=[saving, *more])

    whole = fit_one_cycle(fresh(tmp_path / "whole"), 3, 0.1, momentum=(0.95, 0.85))
    with pytest.raises(fl.CallbackError):
        fit_one_cycle(fresh(tmp_path / "killed", Kill(step)), 3, 0.1, momentum=(0.95, 0.85))
    resumed = fit_one_cycle(fresh(tmp_path / "killed"), 3, 0.1, momentum=(0.95, 0.85), resume=True)
    assert resumed.step == 15
    assert fl.tree.allclose(resumed.model, whole.model, rtol=0, atol=0)
    assert resumed.memory["Rates"] == whole.memory["Rates"]
    assert resumed.state.weight.rule == whole.state.weight.rule == fl.Momentum(0.5)


def test_a_learner_loaded_from_the_middle_of_a_cycle_begins_another(tmp_path):
    saving = fl.callbacks.Checkpointer(tmp_path, every=2, background=False)
    start = learner(callbacks=[saving, Kill(7)])
    with pytest.raises(fl.CallbackError):
        fit_one_cycle(start, 3, 0.1)
    loaded = fl.load_learner(tmp_path, like=start).replace(callbacks=(Rates(),))
    assert loaded.step == 6
    rates = fit_one_cycle(loaded, 2, 0.1).memory["Rates"]["lr"]
    assert rates[6] == pytest.approx(0.1 / 25)
    assert rates[-1] == pytest.approx(0.1 / 1e5)


def test_the_learner_of_an_error_has_its_own_callbacks_and_rates():
    start = learner(callbacks=[Kill(3)])
    with pytest.raises(fl.CallbackError) as caught:
        fit_one_cycle(start, 2, 0.1)
    stands = caught.value.learner
    assert stands.step == 3
    assert stands.callbacks == start.callbacks
    assert stands.state.weight.rule == start.rule


def test_a_compiled_cycle_is_one_trace_and_the_next_fit_has_no_other():
    start = learner(jit=True)
    fitted = fl.fit(fit_one_cycle(start, 2, 0.1), 1)
    eager = fl.fit(fit_one_cycle(start.replace(jit=False), 2, 0.1), 1)
    assert fl.tree.allclose(fitted.model, eager.model, rtol=1e-4, atol=1e-5)
    (trained,) = (f for name, f in fitted._shared["functions"].items() if name != "evaluate")
    assert trained.cache_info().traces == 1


def test_data_without_a_length_needs_the_steps():
    class Stream:
        def __iter__(self):
            return iter(DATA)

    start = learner().replace(data={"training": Stream()})
    with pytest.raises(TypeError, match=r"the data has no length .*; write steps="):
        fit_one_cycle(start, 2, 0.1)
    rates = fit_one_cycle(start, 2, 0.1, steps=5).memory["Rates"]["lr"]
    assert rates == fit_one_cycle(learner(), 2, 0.1).memory["Rates"]["lr"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"epochs": 0}, "over 0 epochs: write how many, from 1"),
        ({"lr": 0.0}, "the rate is 0.0; write a number above 0"),
        ({"div": -1.0}, "div is -1.0"),
        ({"pct": 1.5}, "write a share between 0 and 1"),
        ({"shape": "line"}, "write 'cosine' or 'sine'"),
        ({"momentum": (0.95, 0.85)}, "Descent has neither; leave it out"),
    ],
    ids=["epochs", "lr", "div", "pct", "shape", "momentum"],
)
def test_a_cycle_that_makes_no_sense_is_an_error(settings, text):
    settings = {"epochs": 2, "lr": 0.1, **settings}
    with pytest.raises(ValueError, match=text):
        fit_one_cycle(learner(fl.Descent()), settings.pop("epochs"), settings.pop("lr"), **settings)


def test_betas_that_differ_in_the_second_are_an_error_with_a_momentum():
    def rules(path):
        return fl.Adam(betas=(0.9, 0.99) if "weight" in path else (0.9, 0.999))

    with pytest.raises(
        ValueError, match=r"the rules differ in the second: .*write a Scheduler for each place"
    ):
        fit_one_cycle(learner(rules), 1, 0.1, momentum=(0.95, 0.85))
