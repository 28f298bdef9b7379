"""Schedules: the values of the formulas, torch's schedulers beside them, and what holds for all."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

import fluxlike as fl
from fluxlike import schedules as s

ALL = [
    s.Constant(0.3),
    s.Step(1.0, 0.5, 3),
    s.Step(1.0, 0.5, (2, 3, 4)),
    s.Exp(1.0, 0.9),
    s.Inv(1.0, 0.2, 2),
    s.Poly(1.0, 2, 10),
    s.Cosine(1.0, 0.1, 10),
    s.Cosine(1.0, 0.1, 4, restart=True),
    s.Triangle(0.1, 1.0, 6),
    s.Triangle(0.1, 1.0, 6, decay=0.5),
    s.Sin(0.1, 1.0, 6, decay=0.5),
    s.OneCycle(12, 1.0),
    s.OneCycle(12, 1.0, shape="sine"),
    s.Warmup(s.Cosine(1.0, 0.0, 6), 4),
    s.Sequence((s.Constant(1.0), 3), (s.Exp(0.5, 0.5), 3)),
    s.Loop(s.Exp(1.0, 0.5), 3),
    s.Shifted(s.Exp(1.0, 0.5), 2),
    s.Interpolate(s.Poly(1.0, 1, 4), 3),
]
ENDING = [
    (s.Poly(1.0, 2, 10), 10, 0.0),
    (s.Cosine(1.0, 0.1, 10), 10, 0.1),
    (s.Step(1.0, 0.5, (2, 3)), 5, 0.25),
    (s.OneCycle(12, 1.0), 12, 1e-5),
    (s.OneCycle(12, 1.0, shape="sine"), 12, 1e-5),
    (s.Warmup(s.Cosine(1.0, 0.0, 6), 4), 10, 0.0),
    (s.Sequence((s.Constant(1.0), 3), (s.Exp(0.5, 0.5), 3)), 5, 0.125),
]


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_tensor_of_steps_has_the_values_of_its_numbers(schedule):
    steps = torch.arange(20)
    assert schedule(steps).tolist() == pytest.approx([schedule(t) for t in range(20)], rel=1e-12)
    assert schedule(steps.reshape(4, 5)).shape == (4, 5)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_number_gives_a_float_and_a_0d_tensor_a_0d_tensor(schedule):
    assert type(schedule(3)) is float
    assert schedule(torch.tensor(3)).shape == ()
    assert schedule(torch.tensor(3)).dtype == torch.float64


@pytest.mark.parametrize(("schedule", "end", "last"), ENDING, ids=repr)
def test_a_schedule_past_its_end_holds_its_last_value(schedule, end, last):
    assert [schedule(t) for t in (end, end + 1, end + 1000)] == pytest.approx([last] * 3)


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_schedule_is_a_tree_that_comes_back_from_a_file(schedule, tmp_path):
    fl.save(tmp_path / "s.safetensors", schedule)
    assert fl.load(tmp_path / "s.safetensors", like=schedule) == schedule


@pytest.mark.parametrize("schedule", ALL, ids=repr)
def test_a_schedule_comes_back_from_a_pickle_also_under_the_name_that_users_write(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule
    name = type(schedule).__name__
    assert pickle.loads(f"cfluxlike.schedules\n{name}\n.".encode()) is type(schedule)


def test_the_one_cycle_of_flux_training_has_its_published_values():
    cycle = s.OneCycle(100, 0.01, shape="sine")
    found = [f"{cycle(t - 1):.4g}" for t in (1, 13, 26, 63, 100)]
    assert found == ["0.0004", "0.006972", "0.01", "0.007145", "0.0002095"]


def of_torch(make, steps):
    """The rates that a scheduler of torch gives, from a base rate of 1."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch wants optimiser.step() first
        scheduler = make(optimiser)
        rates = []
        for _ in range(steps):
            rates.append(optimiser.param_groups[0]["lr"])
            scheduler.step()
    return rates


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (s.Step(1.0, 0.3, 4), lambda o: lr_scheduler.StepLR(o, 4, 0.3)),
        (s.Step(1.0, 0.3, (4, 5)), lambda o: lr_scheduler.MultiStepLR(o, [4, 9], 0.3)),
        (s.Exp(1.0, 0.9), lambda o: lr_scheduler.ExponentialLR(o, 0.9)),
        (s.Poly(1.0, 2.0, 12), lambda o: lr_scheduler.PolynomialLR(o, 12, 2.0)),
        (s.Cosine(1.0, 0.1, 16), lambda o: lr_scheduler.CosineAnnealingLR(o, 16, 0.1)),
        (
            s.Cosine(1.0, 0.1, 5, restart=True),
            lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, eta_min=0.1),
        ),
        (
            s.Triangle(0.1, 1.0, 6, decay=0.5),
            lambda o: lr_scheduler.CyclicLR(o, 0.1, 1.0, 3, mode="triangular2", cycle_momentum=False),
        ),
        (
            s.OneCycle(15, 1.0, pct=0.25),
            # torch counts to total_steps - 1, and its top is at pct_start · total_steps - 1
            lambda o: lr_scheduler.OneCycleLR(
                o, 1.0, 16, pct_start=(0.25 * 15 + 1) / 16, final_div_factor=4000, cycle_momentum=False
            ),
        ),
        (
            s.Warmup(s.Constant(1.0), 4, start=0.2),
            lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=4),
        ),
    ],
    ids=lambda x: repr(x) if hasattr(x, "_at") else "torch",
)
def test_the_values_are_those_of_torchs_scheduler(ours, theirs):
    assert [ours(t) for t in range(16)] == pytest.approx(of_torch(theirs, 16), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: s.Cosine(1.0, 0.0, 0), "steps=0: write a number of steps above 0"),
        (lambda: s.Step(1.0, 0.5, (2, 0)), "sizes=0"),
        (lambda: s.OneCycle(10, 1.0, pct=1.5), "pct=1.5: write a share between 0 and 1"),
        (lambda: s.OneCycle(10, 1.0, shape="line"), "write 'cosine' or 'sine'"),
        (lambda: s.Sequence(), "at least one pair"),
        (lambda: s.Interpolate(s.Constant(1.0), 0), "rate=0"),
    ],
)
def test_a_length_or_shape_that_makes_no_sense_is_an_error(make, text):
    with pytest.raises(ValueError, match=text):
        make()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: s.Cosine(1.0, 0.0, "10"),
            r"steps is '10'; write a number of steps, as in Cosine\(high, low, st",
        ),
        (
            lambda: s.Warmup(4, s.Exp(1.0, 0.5)),
            r"steps is Exp\(.*write a number of steps, as in Warmup\(schedule",
        ),
        (lambda: s.Step(1.0, 0.5, (2, None)), "sizes is None; write a number of steps"),
        (lambda: s.Loop(s.Exp(1.0, 0.5), True), "steps is True; write a number of steps"),
    ],
)
def test_a_length_that_is_no_number_is_an_error_with_the_order_of_the_arguments(make, text):
    with pytest.raises(TypeError, match=text):
        make()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: s.Warmup(0.1, 10),
            r"the number 0\.1; .*write Constant\(0\.1\), as in Warmup\(schedule, steps\)",
        ),
        (lambda: s.Loop(torch.tensor(2), 10), r"the number int64\(2\); .*write Constant\(…\)"),
        (lambda: s.Shifted(s.Exp, 3), r"the schedule is the class Exp; write an object, Exp\("),
        (lambda: s.Interpolate("cosine", 3), "the schedule is 'cosine'; write one such as Exp"),
        (lambda: s.Sequence((s.Constant(1.0), 3), (0.1, 3)), r"the number 0\.1; .*write Constant\(0\.1\)"),
    ],
)
def test_a_schedule_inside_that_is_none_is_an_error_that_says_what_to_write(make, text):
    with pytest.raises(TypeError, match=text):
        make()


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: s.Sequence(s.Constant(1.0), 10),
            r"found Constant\(.*write Sequence\(\(schedule, steps\), …\)",
        ),
        (lambda: s.Sequence((s.Constant(1.0), 3), s.Exp(1.0, 0.5)), r"takes pairs .*, found Exp\("),
        (lambda: s.Sequence([(s.Constant(1.0), 10)]), r"a list of pairs; write Sequence\(\*pairs\)"),
    ],
)
def test_a_sequence_of_what_is_no_pair_shows_the_pair(make, text):
    with pytest.raises(TypeError, match=text):
        make()


def test_a_value_that_is_no_number_is_an_error_at_once():
    with pytest.raises(TypeError, match=r"value is Exp\(.*write a number, as in Constant\(value\)"):
        s.Constant(s.Exp(1.0, 0.5))
    with pytest.raises(TypeError, match=r"high is 'a'; write a number, as in Triangle\(low, high, period\)"):
        s.Triangle(0.1, "a", 4)


def test_the_order_of_torchs_step_schedule_is_an_error():
    text = r"sizes=0\.1: write a number of steps of at least 1, as in Step\(start, decay, sizes\)"
    with pytest.raises(ValueError, match=text):
        s.Step(0.1, 30, 0.1)


def test_numbers_may_be_those_of_numpy_and_tensors():
    assert s.Exp(np.float32(0.5), 0.5)(1) == 0.25
    assert s.Step(1.0, 0.5, np.int64(2))(2) == 0.5
    assert s.Constant(torch.tensor(0.5))(0) == 0.5


def test_a_tensor_inside_is_differentiated_also_in_a_schedule_of_schedules():
    def value(start):
        constant = s.Constant(start)
        return s.Warmup(constant, 4)(2) + s.Sequence((constant, 1), (s.Shifted(constant, 1), 1))(1)

    assert fl.gradient(value, torch.tensor(2.0)).item() == 1.5


def test_every_schedule_stands_in_the_table():
    here = {type(schedule).__name__ for schedule in ALL}
    assert here == set(s.__all__) - {"Schedule"}


def test_a_length_may_be_a_float():
    assert [s.Step(1.0, 0.5, 2.0)(t) for t in range(4)] == [1.0, 1.0, 0.5, 0.5]
    assert s.Step(1.0, 0.5, (1.5, 2))(2) == 0.5


def test_a_function_of_a_user_can_be_composed():
    assert s.Shifted(lambda t: 2 * t, 3)(1) == 8
    assert s.Loop(lambda t: 0.5, 3)(torch.arange(2)).tolist() == [0.5, 0.5]


def test_a_schedule_drives_a_rate_by_adjust():
    model = {"w": torch.ones(1, dtype=torch.float64)}
    state, rate = fl.setup(fl.Descent(), model), s.Exp(1.0, 0.5)
    for step in range(3):
        state = fl.adjust(state, rate(step))
        model, state = fl.update(state, model, {"w": torch.ones(1, dtype=torch.float64)})
    assert model["w"].item() == 1 - 1 - 0.5 - 0.25
