"""The learning-rate finder: what it suggests, and that it leaves nothing behind."""

import math
import random

import numpy as np
import pytest
import torch

import fluxlike as fl
from fluxlike.learning.find_lr import RateSearch, find_lr

torch.manual_seed(0)
X = torch.randn(256, 4)
Y = X.sum(1, keepdim=True)


def learner(model=None, rule=None, batch_size=32, **settings):
    data = fl.DataLoader((X, Y), batch_size=batch_size, shuffle=True)
    settings = {"progress": False, "key": fl.Key(0), **settings}
    return fl.Learner(model or fl.Dense(4, 1), data, rule or fl.Descent(), fl.losses.mse, **settings)


def test_the_rates_grow_by_one_factor_from_the_first_to_the_last():
    found = find_lr(learner(), 1e-6, 1e-3, steps=31)
    assert found.lrs == pytest.approx(np.geomspace(1e-6, 1e-3, 31))
    assert len(found.losses) == len(found.smoothed) == 31
    assert found.stopped is None


def test_the_losses_are_those_of_a_loop_with_these_rates():
    model = fl.Dense(4, 1)
    data = fl.DataLoader((X, Y), batch_size=64)
    found = find_lr(learner(model).replace(data={"training": data}), 1e-4, 1e-1, steps=8)
    state = fl.setup(fl.Descent(), model)
    losses = []
    for lr, (x, y) in zip(np.geomspace(1e-4, 1e-1, 8), list(data) * 2, strict=True):
        loss, grads = fl.withgradient(lambda m, x, y: fl.losses.mse(m(x), y), model, x, y)
        model, state = fl.update(fl.adjust(state, float(lr)), model, grads)
        losses.append(loss.item())
    assert found.losses == pytest.approx(losses, rel=1e-5)
    means = np.cumsum(losses) / np.arange(1, 9)  # the average begins as the mean
    assert found.smoothed == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_suggested_rate_trains_and_a_hundred_times_less_or_more_does_not(seed):
    torch.manual_seed(seed)
    start = learner(key=fl.Key(seed))
    found = find_lr(start)
    assert found.stopped == "the loss diverged"
    assert found.suggestion == min(found.steepest, found.minimum_tenth)

    def trained(lr):
        history = fl.fit(start.replace(rule=fl.Descent(lr), callbacks=start.callbacks[1:]), 2).history
        return history["training", "loss"][-1]

    assert trained(found.suggestion) < 0.1
    assert trained(found.suggestion / 100) > 0.3
    assert not trained(100 * found.suggestion) < 1e3


def test_nothing_is_left_behind():
    start = learner(fl.Chain(fl.Dense(4, 8), fl.BatchNorm(8), fl.Dropout(0.2), fl.Dense(8, 1)), fl.Adam())
    before = fl.tree.clone(start)
    expected = fl.fit(start, 2)
    generators = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    find_lr(start, steps=20)
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert (np.random.get_state()[1].tolist(), random.getstate()) == generators[1:]
    assert fl.tree.allclose(start, before, rtol=0, atol=0)
    assert (start.epoch, start.step, start.memory) == (0, 0, {})
    again = fl.fit(start, 2)
    assert fl.tree.allclose(again.model, expected.model, rtol=0, atol=0)
    assert fl.tree.allclose(again.state, expected.state, rtol=0, atol=0)


def test_data_shorter_than_the_search_is_gone_over_again_in_another_order():
    order = []

    class Watch(fl.Callback):
        reads = ("batch",)
        writes = ("batch",)  # so it takes part

        def step_begin(self, run):
            order.append(run.batch[0][0, 0].item())

    find_lr(learner(batch_size=64, callbacks=[Watch()]), steps=12)
    assert len(order) == 12
    assert len(set(order)) > 4


def test_of_the_callbacks_those_that_change_the_batch_take_part_and_others_do_not():
    called = []

    class Double(fl.Callback):
        writes = ("batch",)

        def step_begin(self, run):
            run.batch = tuple(2 * x for x in run.batch)

    class Tell(fl.Callback):
        def step_end(self, run):
            called.append(run.step)

    model = fl.Dense(4, 1)
    plain, doubled = (
        find_lr(learner(model, batch_size=256, callbacks=callbacks), steps=3, stop=1e-6)
        for callbacks in ([], [Double(), Tell()])
    )
    assert doubled.losses[0] > 2 * plain.losses[0]
    assert called == []


def test_a_loss_that_is_nan_ends_the_search_and_is_left_out():
    calls = []

    def loss(outputs, targets):
        calls.append(0)
        return fl.losses.mse(outputs, targets) * (math.nan if len(calls) > 20 else 1)

    start = learner(batch_size=256)
    found = find_lr(fl.Learner(start.model, start.data, fl.Descent(), loss, defaults=False), start=1e-4)
    assert len(found.losses) == len(found.lrs) == 20
    assert found.stopped == "the loss was nan"
    assert math.isfinite(found.suggestion)


@pytest.mark.parametrize("batch_size", [16, 256])
def test_to_a_model_that_has_converged_no_rate_is_suggested(batch_size):
    torch.manual_seed(0)
    targets = Y + 0.5 * torch.randn(256, 1)
    ones = torch.cat([X, torch.ones(256, 1)], 1)
    weight = torch.linalg.lstsq(ones, targets).solution
    best = fl.load_state_dict(fl.Dense(4, 1), {"weight": weight[:4].T, "bias": weight[4]})
    data = fl.DataLoader((X, targets), batch_size=batch_size, shuffle=True)
    found = find_lr(learner(best).replace(data=data))
    assert not found.falls
    with pytest.raises(ValueError, match=r"no rate from 1.0e-07 to .* lets the loss fall .* has converged"):
        _ = found.suggestion
    assert "suggestion    none: the loss falls at no rate" in repr(found)
    assert len(found.plot().axes[0].lines) == 2


def test_a_compiled_learner_searches_with_one_trace_that_the_fit_goes_on_with():
    start = learner(fl.Chain(fl.Dense(4, 8, fl.relu), fl.Dense(8, 1)), fl.Adam(), jit=True)
    eager = find_lr(start.replace(jit=False), steps=20)
    found = find_lr(start, steps=20)
    assert found.losses == pytest.approx(eager.losses, rel=1e-4)
    fl.fit(start, 2)
    (trained,) = (f for name, f in start._shared["functions"].items() if name != "evaluate")
    assert trained.cache_info().traces == 1
    assert trained.cache_info().calls == 20 + 16


def test_steps_of_ones_own_and_a_dict_of_rules_are_searched_too():
    def step(model, state, batch):
        x, y = batch
        loss, grads = fl.withgradient(lambda m: fl.losses.mse(m["b"](m["a"](x)), y), model)
        new = {name: fl.update(state[name], model[name], grads[name]) for name in model}
        return {n: m for n, (m, _) in new.items()}, {n: s for n, (_, s) in new.items()}, loss

    model = {"a": fl.Dense(4, 8), "b": fl.Dense(8, 1)}
    rule = {"a": fl.Adam(), "b": fl.Descent()}
    data = fl.DataLoader((X, Y), batch_size=32)
    found = find_lr(fl.Learner(model, data, rule, step=step, progress=False))
    assert min(found.smoothed) < found.smoothed[10]
    assert 1e-5 < found.suggestion < 1


def test_a_negative_loss_diverges_by_the_same_distance():
    start = learner()
    lowered = fl.Learner(
        start.model,
        start.data,
        fl.Descent(),
        lambda y, t: fl.losses.mse(y, t) - 1e3,
        key=fl.Key(0),
        defaults=False,
    )
    assert len(find_lr(lowered).lrs) > 90


def test_rules_without_a_rate_are_an_error_that_names_what_they_have():
    class Sign:
        def init(self, param):
            return None

        def apply(self, state, param, grad):
            return state, grad.sign()

    with pytest.raises(ValueError, match="no rule there has a hyperparameter 'lr'; they have none"):
        find_lr(learner(rule=Sign()))


def test_a_loss_that_is_not_finite_from_the_begin_is_an_error():
    start = learner()
    broken = fl.Learner(start.model, start.data, fl.Descent(), lambda y, t: (y * math.nan).mean())
    with pytest.raises(ValueError, match=r"ended after 0 steps, at the rate 1.0e-07: the loss was nan"):
        find_lr(broken)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"start": 1.0, "stop": 0.1}, "two rates above 0, the smaller one first"),
        ({"steps": 2}, "at least 3"),
        ({"diverge": 1.0}, "a factor above 1"),
    ],
    ids=["rates", "steps", "diverge"],
)
def test_numbers_that_make_no_search_are_an_error(settings, text):
    with pytest.raises(ValueError, match=text):
        find_lr(learner(), **settings)


def test_the_result_prints_and_plots_what_it_suggests(tmp_path):
    lrs = tuple(np.geomspace(1e-6, 1.0, 61))
    losses = tuple(2 - math.tanh(math.log10(lr) + 3) + (lr > 0.3) for lr in lrs)
    found = RateSearch(lrs, losses, losses, "the loss diverged")
    assert found.steepest == pytest.approx(1e-3)
    assert found.minimum_tenth == pytest.approx(0.1 * max(lr for lr in lrs if lr < 0.3))
    assert repr(found).splitlines() == [
        "RateSearch(61 rates from 1.0e-06 to 1.0e+00: the loss diverged)",
        f"  lowest loss   {min(losses):.4g} at 2.5e-01",
        "  steepest      1.0e-03",
        "  minimum / 10  2.5e-02",
        "  suggestion    1.0e-03",
    ]
    figure = found.plot()
    axis = figure.axes[0]
    assert axis.get_xscale() == "log"
    assert [line.get_xdata()[0] for line in axis.lines[2:]] == pytest.approx([1e-3, found.minimum_tenth])
    figure.savefig(tmp_path / "rates.png")
