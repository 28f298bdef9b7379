"""Every rule that torch.optim has, a hundred steps beside it; the wrappers beside what torch has for them.

Both sides get gradients that depend on the step and on where their own parameters are, so a difference
feeds on itself. On the way a parameter gets its first gradient late, one is frozen for a while, one
has no gradient, one has a gradient of zeros, and the rate changes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim.swa_utils import get_ema_multi_avg_fn

import fluxlike as fl
from fluxlike import schedules as s

STEPS = 100
Model = dict[str, Tensor]
Optimiser = torch.optim.Optimizer


@pytest.fixture
def double() -> Iterator[None]:
    """float64 as the default dtype, in which torch keeps NAdam's product of momenta."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Leaves of a few numbers gain nothing by threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# What both have


@dataclasses.dataclass(frozen=True)
class Pair:
    """A rule and its optimiser of torch, each made from hyperparameters that have the same names."""

    ours: Callable[..., Any]
    theirs: Callable[..., Optimiser]
    cases: list[dict[str, Any]]
    matrices: bool = False  # torch has it for matrices alone
    complex: bool = True  # torch has it for complex parameters


def around(lr: float, /, *more: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """The defaults; with a rate, each other value by itself, the last of all together, and more."""
    alone = [{name: value} for name, values in options.items() for value in values]
    last = {name: values[-1] for name, values in options.items()}
    return [{}, *({"lr": lr, **case} for case in (*alone, last, *more))]


def with_decay(make: Callable[..., Any]) -> Callable[..., Any]:
    """A rule without a weight decay of its own, with the link for it."""
    return lambda weight_decay=None, **hyper: (
        make(**hyper)
        if weight_decay is None
        else fl.OptimiserChain(fl.WeightDecay(weight_decay), make(**hyper))
    )


def sgd(*, nesterov: bool) -> Callable[..., Optimiser]:
    # torch refuses to look ahead by a momentum of 0.
    return lambda ps, momentum=0.9, **hyper: torch.optim.SGD(
        ps, momentum=momentum, nesterov=nesterov and momentum > 0, **hyper
    )


def amsgrad(ps: Any, decoupled_weight_decay: bool = False, **hyper: Any) -> Optimiser:
    make = torch.optim.AdamW if decoupled_weight_decay else torch.optim.Adam
    return make(ps, **{"weight_decay": 0, **hyper}, amsgrad=True)


BETAS = ((0.5, 0.9), (0.0, 0.99), (0.8, 0.95))
EPS = (0.0, 1e-3)
DECAY = (1e-4, 0.2)
SPLIT: Any = (
    {"weight_decay": 0.2, "decoupled_weight_decay": True},
    {"weight_decay": 0.2, "betas": (0.8, 0.95), "eps": 1e-4, "decoupled_weight_decay": True},
)
MOMENTA = (0.0, 0.5, 0.99)

PAIRS = {
    "Descent": Pair(with_decay(fl.Descent), torch.optim.SGD, around(0.05, weight_decay=DECAY)),
    "Momentum": Pair(
        with_decay(fl.Momentum), sgd(nesterov=False), around(0.05, momentum=MOMENTA, weight_decay=DECAY)
    ),
    "Nesterov": Pair(
        with_decay(fl.Nesterov), sgd(nesterov=True), around(0.05, momentum=MOMENTA, weight_decay=DECAY)
    ),
    "Adam": Pair(fl.Adam, torch.optim.Adam, around(0.05, betas=BETAS, eps=EPS, weight_decay=DECAY)),
    "AdamW": Pair(
        fl.AdamW, torch.optim.AdamW, around(0.05, betas=BETAS, eps=EPS, weight_decay=(0.0, *DECAY))
    ),
    "AMSGrad": Pair(fl.AMSGrad, amsgrad, around(0.05, *SPLIT, betas=BETAS, eps=EPS, weight_decay=DECAY)),
    "NAdam": Pair(
        fl.NAdam,
        torch.optim.NAdam,
        around(0.05, *SPLIT, betas=BETAS, eps=EPS, momentum_decay=(0.0, 0.5), weight_decay=DECAY),
    ),
    "RAdam": Pair(
        fl.RAdam,
        torch.optim.RAdam,
        # With a β₂ of 0.5 the variance is never tractable, with 0.7 soon, with 0.95 later.
        around(0.05, *SPLIT, betas=((0.9, 0.5), (0.9, 0.7), *BETAS), eps=EPS, weight_decay=DECAY),
    ),
    "AdaMax": Pair(
        fl.AdaMax, torch.optim.Adamax, around(0.05, betas=BETAS, eps=(1e-12, 1e-3), weight_decay=DECAY)
    ),
    "AdaGrad": Pair(
        fl.AdaGrad,
        torch.optim.Adagrad,
        around(0.2, lr_decay=(0.1,), initial_accumulator_value=(0.1, 2.0), eps=EPS, weight_decay=DECAY),
    ),
    "AdaDelta": Pair(
        fl.AdaDelta, torch.optim.Adadelta, around(0.5, rho=(0.5, 0.95), eps=(1e-3,), weight_decay=DECAY)
    ),
    "RMSProp": Pair(
        fl.RMSProp,
        torch.optim.RMSprop,
        around(
            0.02,
            {"centered": True, "momentum": 0.9},
            {"centered": True, "weight_decay": 0.2},
            {"momentum": 0.5, "weight_decay": 0.2},
            alpha=(0.5, 0.9),
            eps=(1e-3,),
            weight_decay=DECAY,
            momentum=(0.5, 0.9),
            centered=(True,),
        ),
    ),
    "Rprop": Pair(
        fl.Rprop,
        torch.optim.Rprop,
        # In the last, sizes start below the smallest and would grow past the largest.
        around(0.05, etas=((0.3, 1.05), (0.8, 1.5)), step_sizes=((1e-3, 0.1), (0.06, 0.08))),
    ),
    "Adafactor": Pair(
        fl.Adafactor,
        torch.optim.Adafactor,
        around(
            0.3,
            beta2_decay=(0.0, -0.5),
            eps=((2.0, 1e-3), (None, 0.5), (1e-30, 0.1)),
            d=(3.0,),
            weight_decay=DECAY,
        ),
        complex=False,
    ),
    "Muon": Pair(
        fl.Muon,
        torch.optim.Muon,
        around(
            0.05,
            momentum=(0.0, 0.7),
            nesterov=(False,),
            weight_decay=(0.0, 0.3),
            ns_coefficients=((2.0, -1.5, 0.5),),
            eps=(10.0,),
            ns_steps=(1, 3),
            adjust_lr_fn=("original", "match_rms_adamw"),
        ),
        matrices=True,
        complex=False,
    ),
}


def named(*, brief: bool = False, keep: Callable[[Pair], bool] = lambda pair: True) -> list[Any]:
    """For parametrize, names and the numbers of their cases; in brief the defaults and those with much."""

    def show(case: dict[str, Any]) -> str:
        return ", ".join(f"{k}={v}" for k, v in case.items())

    return [
        pytest.param(name, k, id=f"{name}({show(case)})")
        for name, pair in PAIRS.items()
        if keep(pair)
        for k, case in enumerate(pair.cases)
        if not brief or len(case) != 2
    ]


# Two runs from the same start


def start(dtype: torch.dtype, *, matrices: bool = False) -> Model:
    generator = torch.Generator().manual_seed(0)
    shapes = {"w": (4, 3), "b": (4,), "v": (2, 2, 3), "turned": (3, 5), "scalar": ()}
    if matrices:
        shapes = {"wide": (3, 6), "tall": (6, 2), "square": (4, 4), "turned": (3, 5), "row": (1, 4)}
    model = {k: torch.randn(shape, generator=generator, dtype=dtype) for k, shape in shapes.items()}
    return model | {"turned": model["turned"].T}


@cache
def noise(dtype: torch.dtype, *, matrices: bool = False) -> list[Model]:
    generator = torch.Generator().manual_seed(1)
    model = start(dtype, matrices=matrices)
    return [
        {k: torch.randn(x.shape, generator=generator, dtype=dtype) for k, x in model.items()}
        for _ in range(STEPS)
    ]


def slopes(model: Model, t: int, *, matrices: bool = False) -> Model:
    """Gradients at a step, which pull the parameters to 0."""
    dtype = next(iter(model.values())).dtype
    return {k: 0.3 * x + noise(dtype, matrices=matrices)[t][k] for k, x in model.items()}


def numbers(model: Model) -> Tensor:
    """All numbers of a model in a row, complex ones as pairs."""
    parts = [x.detach() for x in model.values()]
    return torch.cat([(torch.view_as_real(x) if x.is_complex() else x).reshape(-1) for x in parts])


def assert_alike(seen: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Two runs are alike at every step, or the message names the first where they aren't."""
    ours, theirs = torch.stack(seen), torch.stack(expected)
    assert torch.isfinite(theirs).all()
    assert not torch.equal(theirs[0], theirs[-1])  # it moved
    off = ((ours - theirs).abs() > tolerance * (1 + theirs.abs())) | ~torch.isfinite(ours)
    if off.any():
        t = int(off.any(1).nonzero()[0])
        torch.testing.assert_close(
            ours[t], theirs[t], rtol=tolerance, atol=tolerance, msg=lambda m: f"first at step {t}: {m}"
        )


@dataclasses.dataclass(frozen=True)
class Events:
    """What happens on the way: names of parameters, and when."""

    zero: str
    frozen: str
    missing: str
    late: str

    def untouched(self, name: str, t: int) -> bool:
        """Whether a parameter has no gradient at a step."""
        late, frozen = name == self.late and t < 3, name == self.frozen and 12 <= t < 20
        return late or frozen or (name == self.missing and 25 <= t < 32)

    def gradients(self, model: Model, t: int, *, matrices: bool) -> Model:
        grads = slopes(model, t, matrices=matrices)
        if 50 <= t < 55:
            grads[self.zero] = torch.zeros_like(model[self.zero])
        return grads


def events(model: Model) -> Events:
    names = list(model)
    return Events(zero=names[0], frozen=names[1], missing=names[2], late=names[-1])


def our_run(pair: Pair, rule: Any, dtype: torch.dtype, rate: float, *, donate: bool) -> list[Tensor]:
    """A hundred steps of a rule; its rate changes after forty."""
    model = start(dtype, matrices=pair.matrices)
    state, what, seen = fl.setup(rule, model), events(model), []
    for t in range(STEPS):
        if t == 12:
            state = fl.freeze(state, f"['{what.frozen}']")
        if t == 20:
            state = fl.thaw(state, f"['{what.frozen}']")
        if t == 40:
            state = fl.adjust(state, rate)
        grads: dict[str, Any] = what.gradients(model, t, matrices=pair.matrices)
        for name in (what.missing, what.late):
            if what.untouched(name, t):
                grads[name] = None
        model, state = fl.update(state, model, grads, donate=donate)
        seen.append(numbers(model))
    return seen


@cache
def their_run(name: str, k: int, dtype: torch.dtype) -> tuple[list[Tensor], float]:
    """The same steps of torch's optimiser, and the rate that it changes to."""
    pair = PAIRS[name]
    model = parameters(start(dtype, matrices=pair.matrices))
    optimiser = pair.theirs(list(model.values()), **pair.cases[k])
    rate = 0.3 * optimiser.defaults["lr"]
    what, seen = events(model), []
    for t in range(STEPS):
        if t == 40:
            optimiser.param_groups[0]["lr"] = rate
        grads = what.gradients({key: p.detach() for key, p in model.items()}, t, matrices=pair.matrices)
        for key, p in model.items():
            p.grad = None if what.untouched(key, t) else grads[key]
        optimiser.step()
        seen.append(numbers(model))
    return seen, rate


def parameters(model: Model) -> Model:
    return {k: x.clone().requires_grad_() for k, x in model.items()}


def compare(name: str, k: int, dtype: torch.dtype, *, donate: bool, tolerance: float) -> None:
    pair = PAIRS[name]
    expected, rate = their_run(name, k, dtype)
    seen = our_run(pair, pair.ours(**pair.cases[k]), dtype, rate, donate=donate)
    assert_alike(seen, expected, tolerance)


DONATE = pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "k"), named())
def test_a_hundred_steps_equal_torchs_in_float64(name: str, k: int) -> None:
    compare(name, k, torch.float64, donate=False, tolerance=1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "k"), named(brief=True))
def test_a_hundred_donated_steps_equal_torchs_in_float64(name: str, k: int) -> None:
    compare(name, k, torch.float64, donate=True, tolerance=1e-12)


@DONATE
@pytest.mark.parametrize(("name", "k"), named(brief=True))
def test_a_hundred_steps_equal_torchs_in_float32(name: str, k: int, donate: bool) -> None:
    # Muon iterates in bfloat16, where the last digit of float32 turns a rounding over now and then.
    compare(name, k, torch.float32, donate=donate, tolerance=2e-3 if name == "Muon" else 2e-6)


@pytest.mark.usefixtures("double")
@DONATE
@pytest.mark.parametrize(("name", "k"), named(brief=True, keep=lambda pair: pair.complex))
def test_a_hundred_steps_equal_torchs_for_complex_parameters(name: str, k: int, donate: bool) -> None:
    compare(name, k, torch.complex128, donate=donate, tolerance=1e-12)


def as_tensors(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(as_tensors, value))
    return torch.tensor(value) if isinstance(value, float) else value


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("name", "k"), named(brief=True))
def test_a_hundred_steps_by_0d_tensors_as_hyperparameters_equal_torchs_by_numbers(name: str, k: int) -> None:
    pair, plain = PAIRS[name], {"ns_coefficients", "eps"} if name == "Muon" else set()
    expected, rate = their_run(name, k, torch.float64)
    case = {key: v if key in plain else as_tensors(v) for key, v in pair.cases[k].items()}
    seen = our_run(pair, pair.ours(**case), torch.float64, rate, donate=False)
    assert_alike(seen, expected, 1e-12)


# Defaults

TORCH_ALONE = {"foreach", "fused", "capturable", "differentiable", "maximize"}
SGD_ALONE = {"dampening", "nesterov", "weight_decay"}  # a rule of its own, and a link
THEIRS_ALONE = {
    "Descent": SGD_ALONE | {"momentum"},
    "Momentum": SGD_ALONE,
    "Nesterov": SGD_ALONE,
    "Adam": {"amsgrad", "decoupled_weight_decay"},
    "AdamW": {"amsgrad", "decoupled_weight_decay"},
    "AMSGrad": {"amsgrad"},
}
OURS_ALONE = {"AdamW": {"couple"}, "Muon": {"rest"}}


@pytest.mark.parametrize("name", PAIRS)
def test_hyperparameters_have_the_names_and_defaults_of_torchs(name: str) -> None:
    rule = PAIRS[name].ours()
    theirs = PAIRS[name].theirs([torch.zeros(1, 1, requires_grad=True)]).defaults
    ours = {f.name: f.default for f in dataclasses.fields(rule) if f.name not in OURS_ALONE.get(name, ())}
    assert ours.keys() == theirs.keys() - TORCH_ALONE - THEIRS_ALONE.get(name, set())
    assert ours == {key: theirs[key] for key in ours}
    assert all(getattr(rule, key) == value for key, value in ours.items())


# Schedules


def followed(rule: Any, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """A hundred steps of a rule, in which all parameters have gradients."""
    model = start(dtype)
    state, seen = fl.setup(rule, model), []
    for t in range(STEPS):
        model, state = fl.update(state, model, slopes(model, t))
        seen.append(numbers(model))
    return seen


def stepped(optimiser: Optimiser, model: Model, t: int) -> None:
    """One step of torch's optimiser over parameters."""
    for name, g in slopes({k: p.detach() for k, p in model.items()}, t).items():
        model[name].grad = g
    optimiser.step()


SCHEDULES: dict[str, tuple[Any, Callable[[Optimiser], Any]]] = {
    "StepLR": (s.Step(0.1, 0.6, 15), lambda o: lr_scheduler.StepLR(o, 15, 0.6)),
    "MultiStepLR": (
        s.Step(0.1, 0.3, (20, 5, 50)),
        lambda o: lr_scheduler.MultiStepLR(o, [20, 25, 75], 0.3),
    ),
    "ExponentialLR": (s.Exp(0.1, 0.97), lambda o: lr_scheduler.ExponentialLR(o, 0.97)),
    "PolynomialLR": (s.Poly(0.1, 2.0, 80), lambda o: lr_scheduler.PolynomialLR(o, 80, 2.0)),
    "CosineAnnealingLR": (
        s.Cosine(0.1, 0.01, 100),
        lambda o: lr_scheduler.CosineAnnealingLR(o, 100, 0.01),
    ),
    "CosineAnnealingWarmRestarts": (
        s.Cosine(0.1, 0.01, 30, restart=True),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 30, eta_min=0.01),
    ),
    "CyclicLR": (
        s.Triangle(0.01, 0.1, 40, decay=0.5),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 20, mode="triangular2", cycle_momentum=False),
    ),
    "LinearLR": (
        s.Warmup(s.Constant(0.1), 10, start=0.02),
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=10),
    ),
    "LambdaLR": (
        s.Inv(0.1, 0.2, 0.5),
        lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + 0.2 * t) ** 0.5),
    ),
    "SequentialLR": (
        s.Warmup(s.Exp(0.1, 0.97), 10, start=0.01),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [lr_scheduler.LinearLR(o, 0.1, total_iters=10), lr_scheduler.ExponentialLR(o, 0.97)],
            milestones=[10],
        ),
    ),
    "OneCycleLR": (
        s.OneCycle(99, 0.1, pct=0.25),
        # torch counts to total_steps - 1, and its top is at pct_start · total_steps - 1.
        lambda o: lr_scheduler.OneCycleLR(
            o, 0.1, 100, pct_start=(0.25 * 99 + 1) / 100, final_div_factor=4000, cycle_momentum=False
        ),
    ),
}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["Momentum", "AMSGrad"])
@pytest.mark.parametrize("scheduler", SCHEDULES)
def test_a_scheduled_rate_equals_torchs_scheduler(scheduler: str, name: str) -> None:
    ours, theirs = SCHEDULES[scheduler]
    model = parameters(start(torch.float64))
    optimiser = PAIRS[name].theirs(list(model.values()), lr=0.1)
    schedule, expected = theirs(optimiser), []
    for t in range(STEPS):
        stepped(optimiser, model, t)
        expected.append(numbers(model))
        schedule.step()
    assert_alike(followed(fl.Scheduled(PAIRS[name].ours(), lr=ours)), expected, 1e-12)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["Momentum", "Adam"])
def test_a_scheduled_momentum_equals_torchs_one_cycle(name: str) -> None:
    momentum = s.OneCycle(99, 0.85, start=0.95, end=0.95)
    model = parameters(start(torch.float64))
    optimiser = PAIRS[name].theirs(list(model.values()), lr=0.1)
    schedule = lr_scheduler.OneCycleLR(
        optimiser, 0.1, 100, pct_start=(0.25 * 99 + 1) / 100, final_div_factor=4000
    )
    expected = []
    for t in range(STEPS):
        stepped(optimiser, model, t)
        expected.append(numbers(model))
        schedule.step()
    hyper = {"momentum": momentum} if name == "Momentum" else {"betas": (momentum, 0.999)}
    rule = fl.Scheduled(PAIRS[name].ours(), lr=s.OneCycle(99, 0.1), **hyper)
    assert_alike(followed(rule), expected, 1e-12)


# Averages and master copies


@pytest.mark.usefixtures("double")
@DONATE
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("decay", [0.0, 0.9])
@pytest.mark.parametrize("name", ["Descent", "RAdam"])
def test_the_moving_average_equals_torchs(name: str, decay: float, dtype: torch.dtype, donate: bool) -> None:
    theirs = parameters(start(dtype))
    optimiser = PAIRS[name].theirs(list(theirs.values()), lr=0.05)
    averages, blend = start(dtype), get_ema_multi_avg_fn(decay)
    model = start(dtype)
    state = fl.setup(fl.EMA(PAIRS[name].ours(lr=0.05), decay=decay), model)
    seen, expected = [], []
    for t in range(STEPS):
        model, state = fl.update(state, model, slopes(model, t), donate=donate)
        stepped(optimiser, theirs, t)
        blend(list(averages.values()), [p.detach() for p in theirs.values()], t)
        seen += [numbers(model), numbers(fl.averaged(state, model))]
        expected += [numbers(theirs), numbers(averages)]
    assert_alike(seen, expected, 1e-12)


@DONATE
@pytest.mark.parametrize("name", ["Momentum", "Adam", "AdaDelta"])
def test_a_bfloat16_model_is_the_float32_run_rounded(name: str, donate: bool) -> None:
    model = {k: x.to(torch.bfloat16) for k, x in start(torch.float32).items()}
    theirs = parameters({k: x.float() for k, x in model.items()})
    optimiser = PAIRS[name].theirs(list(theirs.values()), lr=0.01)
    state = fl.setup(fl.MixedPrecision(torch.float32, PAIRS[name].ours(lr=0.01)), model)
    seen, expected = [], []
    for t in range(STEPS):
        grads = slopes(model, t)
        for k, g in grads.items():
            theirs[k].grad = g.float()
        model, state = fl.update(state, model, grads, donate=donate)
        optimiser.step()
        masters = {k: entry.state.master for k, entry in state.items()}
        assert all(torch.equal(model[k], m.to(torch.bfloat16)) for k, m in masters.items())
        seen.append(numbers(masters))
        expected.append(numbers(theirs))
    assert_alike(seen, expected, 2e-6)


# Gradients on their way


@pytest.mark.usefixtures("double")
@DONATE
@pytest.mark.parametrize("n", [1, 3, 4])
@pytest.mark.parametrize("name", ["Momentum", "Adam", "NAdam", "Rprop"])
def test_accumulated_gradients_equal_torchs_sum_of_losses_divided(name: str, n: int, donate: bool) -> None:
    theirs = parameters(start(torch.float64))
    optimiser = PAIRS[name].theirs(list(theirs.values()), lr=0.05)
    model = start(torch.float64)
    state = fl.setup(fl.OptimiserChain(fl.AccumGrad(n), PAIRS[name].ours(lr=0.05)), model)
    seen, expected = [], []
    for t in range(STEPS):
        missing = 2 * n <= t < 4 * n  # one parameter has no gradient twice in a row
        grads = slopes(model, t)
        model, state = fl.update(state, model, grads | ({"v": None} if missing else {}), donate=donate)
        for k, g in slopes({k: p.detach() for k, p in theirs.items()}, t).items():
            if not (missing and k == "v"):
                p = theirs[k]
                p.grad = g / n if p.grad is None else p.grad + g / n
        if (t + 1) % n == 0:
            optimiser.step()
            optimiser.zero_grad()
        seen.append(numbers(model))
        expected.append(numbers(theirs))
    assert_alike(seen, expected, 1e-12)


def clipped_runs(link: Any, clip: Callable[[list[Tensor]], Any], name: str, dtype: torch.dtype) -> None:
    theirs = parameters(start(dtype))
    optimiser = PAIRS[name].theirs(list(theirs.values()), lr=0.05)
    model = start(dtype)
    what = events(model)
    state = fl.setup(fl.OptimiserChain(link, PAIRS[name].ours(lr=0.05)), model)
    seen, expected = [], []
    for t in range(STEPS):
        size = (0.01, 1.0, 30.0)[t % 3]  # below the limit and far above it
        grads: dict[str, Any] = {k: size * g for k, g in slopes(model, t).items()}
        if t == 12:
            state = fl.freeze(state, f"['{what.frozen}']")
        if t == 20:
            state = fl.thaw(state, f"['{what.frozen}']")
        for k in (what.missing, what.late):
            if what.untouched(k, t):
                grads[k] = None
        model, state = fl.update(state, model, grads)
        for k, g in slopes({k: p.detach() for k, p in theirs.items()}, t).items():
            theirs[k].grad = None if what.untouched(k, t) else size * g
        clip(list(theirs.values()))
        optimiser.step()
        seen.append(numbers(model))
        expected.append(numbers(theirs))
    assert_alike(seen, expected, 1e-12)


P = pytest.mark.parametrize("p", [1.0, 2.0, 3.0, float("inf")])


@pytest.mark.usefixtures("double")
@P
@pytest.mark.parametrize("max_norm", [0.1, 2.0, 40.0])
def test_the_clipped_global_norm_equals_torchs(max_norm: float, p: float) -> None:
    clipped_runs(
        fl.ClipGlobalNorm(max_norm, p=p),
        lambda ps: torch.nn.utils.clip_grad_norm_(ps, max_norm, p),
        "Momentum",
        torch.float64,
    )


@pytest.mark.usefixtures("double")
def test_the_clipped_global_norm_of_complex_gradients_equals_torchs() -> None:
    clipped_runs(
        fl.ClipGlobalNorm(2.0),
        lambda ps: torch.nn.utils.clip_grad_norm_(ps, 2.0),
        "Descent",
        torch.complex128,
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("delta", [0.1, 3.0])
@pytest.mark.parametrize("name", ["Descent", "Adam"])
def test_clipped_entries_equal_torchs(name: str, delta: float) -> None:
    clipped_runs(
        fl.ClipGrad(delta),
        lambda ps: torch.nn.utils.clip_grad_value_(ps, delta),
        name,
        torch.float64,
    )


# Models


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["Nesterov", "AdamW", "Adafactor"])
def test_training_a_model_equals_torchs(name: str) -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    model = fl.Chain(fl.Dense(3, 4, torch.tanh), fl.Dense(4, 2))
    places = (".layers[0].weight", ".layers[0].bias", ".layers[1].weight", ".layers[1].bias")
    model = fl.at(model, places).set([p.detach().clone() for p in module.parameters()])
    optimiser = PAIRS[name].theirs(module.parameters(), lr=0.05)
    state = fl.setup(PAIRS[name].ours(lr=0.05), model)
    for _ in range(STEPS):
        x = torch.randn(6, 3)
        optimiser.zero_grad()
        module(x).square().mean().backward()
        optimiser.step()
        model, state = fl.update(state, model, fl.gradient(lambda m, x: m(x).square().mean(), model, x))
    expected = [p.detach() for p in module.parameters()]
    torch.testing.assert_close(fl.trainables(model), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_muon_moves_matrices_as_torchs_and_the_rest_as_torchs_adamw() -> None:
    both = start(torch.float64) | start(torch.float64, matrices=True)
    theirs = parameters(both)
    muon = torch.optim.Muon([p for p in theirs.values() if p.ndim == 2], lr=0.05)
    adamw = torch.optim.AdamW([p for p in theirs.values() if p.ndim != 2], lr=0.01)
    model, state = both, fl.setup(fl.Muon(0.05, rest=fl.AdamW(0.01)), both)
    seen, expected = [], []

    def pull(xs: Model, t: int) -> Model:
        return slopes({k: xs[k] for k in start(torch.float64)}, t) | slopes(
            {k: xs[k] for k in start(torch.float64, matrices=True)}, t, matrices=True
        )

    for t in range(STEPS):
        model, state = fl.update(state, model, pull(model, t))
        for k, g in pull({k: p.detach() for k, p in theirs.items()}, t).items():
            theirs[k].grad = g
        muon.step()
        adamw.step()
        seen.append(numbers(model))
        expected.append(numbers(theirs))
    assert_alike(seen, expected, 1e-12)
