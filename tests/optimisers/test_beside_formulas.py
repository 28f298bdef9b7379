"""The rules that torch has not, a hundred steps beside their published formulas; and the golden numbers.

Each formula is written here as its paper writes it, in numpy and for one parameter. Where it stands, and
where the rule stands, decides the next gradient, so a difference feeds on itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close

import fluxlike as fl

STEPS = 100
SHAPES: dict[str, tuple[int, ...]] = {"w": (4, 3), "b": (5,), "scalar": (), "zeros": (3,)}

Array = NDArray[np.float64]
Slope = Callable[[int, Array], Array]
"""The gradient at a step, from 1, and a place."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Leaves of a few numbers gain nothing by threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draws(seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(shape) for k, shape in SHAPES.items()}


START = draws(0) | {"zeros": np.zeros(3)}
NOISE = [draws(t) for t in range(1, STEPS + 1)]


def slope(name: str) -> Slope:
    return lambda t, x: 0.3 * x + NOISE[t - 1][name]


def gradients(model: dict[str, Tensor], t: int) -> dict[str, Tensor]:
    """The same gradients, of a model of ours."""
    return {k: 0.3 * x + torch.from_numpy(np.asarray(NOISE[t - 1][k])) for k, x in model.items()}


def start() -> dict[str, Tensor]:
    return {k: torch.tensor(x, dtype=torch.float64) for k, x in START.items()}


def run(
    rule: Any,
    *,
    donate: bool = False,
    grads_of: Callable[[dict[str, Tensor], int], dict[str, Tensor]] = gradients,
) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """A model and its state after each step."""
    model = start()
    state = fl.setup(rule, model)
    for t in range(1, STEPS + 1):
        model, state = fl.update(state, model, grads_of(model, t), donate=donate)
        yield fl.tree.clone(model), state


def assert_alike(seen: list[dict[str, Any]], expected: dict[str, list[Array]]) -> None:
    """A model is at every step, at every parameter, where a formula is."""
    for k, theirs in expected.items():
        ours = np.stack([np.asarray(model[k]) for model in seen])
        off = ~(abs(ours - np.stack(theirs)) <= 1e-12 * (1 + abs(np.stack(theirs))))
        if off.any():
            t = int(off.reshape(STEPS, -1).any(1).argmax())
            assert_close(
                ours[t], np.asarray(theirs[t]), rtol=1e-12, atol=1e-12,
                msg=lambda m: f"first at step {t + 1}, {k}: {m}",
            )  # fmt: skip
        assert not np.array_equal(theirs[0], theirs[-1])  # it moved


def assert_follows(rule: Any, formula: Callable[[Array, Slope], Iterator[Array]], **more: Any) -> None:
    """A rule moves the model as a formula moves each of its parameters."""
    expected = {k: list(formula(x, slope(k))) for k, x in START.items()}
    assert_alike([model for model, _ in run(rule, **more)], expected)


def each(**options: Any) -> list[dict[str, Any]]:
    """All combinations of hyperparameters."""
    return [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]


def show(case: Any) -> str | None:
    return ", ".join(f"{k}={v}" for k, v in case.items()) if isinstance(case, dict) else None


DONATE = pytest.mark.parametrize("donate", [False, True], ids=["pure", "donated"])


# The family of Adam


def oadam(
    x: Array, g: Slope, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Iterator[Array]:
    """Daskalakis et al. 2018, algorithm 1: ``θ ← θ - 2η·mₜ/(√vₜ+ε) + η·mₜ₋₁/(√vₜ₋₁+ε)``."""
    m = v = before = np.zeros_like(x)
    for t in range(1, STEPS + 1):
        slope = g(t, x) + weight_decay * x
        m = betas[0] * m + (1 - betas[0]) * slope
        v = betas[1] * v + (1 - betas[1]) * slope**2
        term = lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        x = x - 2 * term + before
        before = term
        yield x


def adabelief(
    x: Array, g: Slope, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Iterator[Array]:
    """Zhuang et al. 2020, algorithm 2."""
    m = s = np.zeros_like(x)
    for t in range(1, STEPS + 1):
        slope = g(t, x) + weight_decay * x
        m = betas[0] * m + (1 - betas[0]) * slope
        s = betas[1] * s + (1 - betas[1]) * (slope - m) ** 2 + eps
        m_hat, s_hat = m / (1 - betas[0] ** t), s / (1 - betas[1] ** t)
        x = x - lr * m_hat / (np.sqrt(s_hat) + eps)
        yield x


def adamw_uncoupled(
    x: Array, g: Slope, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Iterator[Array]:
    """Loshchilov & Hutter 2019, algorithm 2, line 12: ``θ ← θ - (αm^/(√v^+ε) + λθ)``."""
    m = v = np.zeros_like(x)
    for t in range(1, STEPS + 1):
        m = betas[0] * m + (1 - betas[0]) * g(t, x)
        v = betas[1] * v + (1 - betas[1]) * g(t, x) ** 2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        x = x - (lr * m_hat / (np.sqrt(v_hat) + eps) + weight_decay * x)
        yield x


def lamb(
    x: Array, g: Slope, lr: float, betas: tuple[float, float], eps: float, weight_decay: float
) -> Iterator[Array]:
    """You et al. 2020, algorithm 2, with φ the identity; a ratio of 1 where a norm is 0."""
    m = v = np.zeros_like(x)
    for t in range(1, STEPS + 1):
        m = betas[0] * m + (1 - betas[0]) * g(t, x)
        v = betas[1] * v + (1 - betas[1]) * g(t, x) ** 2
        r = (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
        u = r + weight_decay * x
        size, length = math.sqrt(np.sum(x**2)), math.sqrt(np.sum(u**2))
        x = x - lr * (size / length if size > 0 and length > 0 else 1.0) * u
        yield x


def lion(x: Array, g: Slope, lr: float, betas: tuple[float, float], weight_decay: float) -> Iterator[Array]:
    """Chen et al. 2023, algorithm 2."""
    m = np.zeros_like(x)
    for t in range(1, STEPS + 1):
        slope = g(t, x)
        c = betas[0] * m + (1 - betas[0]) * slope
        m = betas[1] * m + (1 - betas[1]) * slope
        x = x - lr * (np.sign(c) + weight_decay * x)
        yield x


FAMILY = each(lr=[0.02], betas=[(0.9, 0.999), (0.5, 0.9)], eps=[1e-8, 1e-3], weight_decay=[0.0, 0.1])
BELIEF = each(lr=[0.02], betas=[(0.9, 0.999), (0.5, 0.9)], eps=[1e-16, 1e-3], weight_decay=[0.0, 0.1])
UNCOUPLED = each(lr=[0.02], betas=[(0.9, 0.999), (0.5, 0.9)], eps=[1e-8, 1e-3], weight_decay=[0.0, 0.01])
SIGNS = each(lr=[1e-3, 0.05], betas=[(0.9, 0.99), (0.5, 0.7), (0.0, 0.0)], weight_decay=[0.0, 0.3])
FORMULAS: list[tuple[Callable[..., Any], Callable[..., Iterator[Array]], list[dict[str, Any]]]] = [
    (fl.OAdam, oadam, FAMILY),
    (fl.AdaBelief, adabelief, BELIEF),
    (fl.Lamb, lamb, FAMILY),
    (fl.Lion, lion, SIGNS),
]


@DONATE
@pytest.mark.parametrize(
    ("make", "formula", "case"),
    [
        pytest.param(make, formula, case, id=f"{make.__name__}({show(case)})")
        for make, formula, cases in FORMULAS
        for case in cases
    ],
)
def test_a_hundred_steps_equal_the_published_formula(
    make: Callable[..., Any], formula: Callable[..., Iterator[Array]], case: dict[str, Any], donate: bool
) -> None:
    assert_follows(make(**case), lambda x, g: formula(x, g, **case), donate=donate)


@DONATE
@pytest.mark.parametrize("case", UNCOUPLED, ids=show)
def test_adamw_uncoupled_adds_the_decay_as_the_paper_does(case: dict[str, Any], donate: bool) -> None:
    rule = fl.AdamW(**case, couple=False)
    assert_follows(rule, lambda x, g: adamw_uncoupled(x, g, **case), donate=donate)


@pytest.mark.parametrize(
    ("rule", "defaults"),
    [
        (fl.OAdam(), {"lr": 1e-3, "betas": (0.5, 0.9), "eps": 1e-8, "weight_decay": 0.0}),
        (fl.AdaBelief(), {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-16, "weight_decay": 0.0}),
        (fl.Lion(), {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0}),
        (fl.Lamb(), {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.0}),
        (fl.ScheduleFree(), {"lr": 2.5e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
        (fl.SignDecay(), {"weight_decay": 1e-3}),
        (fl.ClipGrad(), {"delta": 10.0}),
        (fl.ClipNorm(), {"max_norm": 10.0, "p": 2.0}),
        (fl.Momentum(), {"momentum": 0.9}),
        (fl.Nesterov(), {"momentum": 0.9}),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, dict) else "",
)
def test_the_defaults_are_those_of_the_papers(rule: Any, defaults: dict[str, Any]) -> None:
    assert {name: getattr(rule, name) for name in defaults} == defaults


# Schedule-free


def schedule_free(
    x1: Array,
    g: Slope,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    warmup_steps: int,
    r: float,
    weight_lr_power: float,
) -> Iterator[tuple[Array, Array, Array]]:
    """Defazio et al. 2024, algorithm 1, with the second moment corrected for its start; gives z, x and y."""
    z = x = x1
    y = (1 - betas[0]) * z + betas[0] * x
    v = np.zeros_like(x1)
    total = largest = 0.0
    for t in range(1, STEPS + 1):
        slope = g(t, y)
        v = betas[1] * v + (1 - betas[1]) * slope**2
        rate = lr * min(1.0, t / warmup_steps) if warmup_steps else lr
        z = z - rate * slope / (np.sqrt(v / (1 - betas[1] ** t)) + eps) - rate * weight_decay * y
        largest = max(largest, rate)
        weight = t**r * largest**weight_lr_power
        total += weight
        c = weight / total
        x = (1 - c) * x + c * z
        y = (1 - betas[0]) * z + betas[0] * x
        yield z, x, y


FREE: dict[str, Any] = {
    "lr": 0.05, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, "warmup_steps": 0, "r": 0.0,
    "weight_lr_power": 2.0,
}  # fmt: skip


@DONATE
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"betas": (0.5, 0.9)},
        {"betas": (0.98, 0.95), "eps": 1e-3},
        {"weight_decay": 0.2},
        {"warmup_steps": 20},
        {"r": 1.0, "weight_lr_power": 0.0},
        {"r": 0.5, "weight_lr_power": 1.0, "warmup_steps": 33, "weight_decay": 0.1, "betas": (0.7, 0.99)},
    ],
    ids=show,
)
def test_schedule_free_keeps_the_three_sequences_of_the_paper(change: dict[str, Any], donate: bool) -> None:
    case = FREE | change
    expected = {k: list(schedule_free(x, slope(k), **case)) for k, x in START.items()}
    zs, xs, ys = [], [], []
    for model, state in run(fl.ScheduleFree(**case), donate=donate):
        zs.append({k: entry.state.z.clone() for k, entry in state.items()})
        xs.append(fl.averaged(state, model))
        ys.append(model)
    for i, seen in enumerate((zs, xs, ys)):
        assert_alike(seen, {k: [step[i] for step in steps] for k, steps in expected.items()})


def test_schedule_free_weighs_by_the_largest_rate_so_far() -> None:
    rates = [0.05 if t < 50 else 0.01 for t in range(STEPS)]
    model = torch.tensor([1.0], dtype=torch.float64)
    state = fl.setup(fl.Scheduled(fl.ScheduleFree(), lr=lambda t: rates[int(t)]), model)
    z = x = y = 1.0
    v = total = 0.0
    for t in range(1, STEPS + 1):
        model, state = fl.update(state, model, 0.3 * model + math.sin(t))
        g = 0.3 * y + math.sin(t)
        v = 0.999 * v + 0.001 * g * g
        z -= rates[t - 1] * g / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
        total += 0.05**2
        x += (z - x) * 0.05**2 / total
        y = 0.1 * z + 0.9 * x
        assert model.item() == pytest.approx(y, rel=1e-12, abs=1e-12)
        assert fl.averaged(state, model).item() == pytest.approx(x, rel=1e-12, abs=1e-12)


# Links


@DONATE
@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.4])
def test_sign_decay_is_the_slope_of_an_l1_penalty(weight_decay: float, donate: bool) -> None:
    def formula(x: Array, g: Slope) -> Iterator[Array]:
        for t in range(1, STEPS + 1):
            x = x - 0.05 * (g(t, x) + weight_decay * np.sign(x))
            yield x

    rule = fl.OptimiserChain(fl.SignDecay(weight_decay), fl.Descent(0.05))
    assert_follows(rule, formula, donate=donate)


@DONATE
@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, math.inf])
@pytest.mark.parametrize("max_norm", [0.5, 2.0])
def test_clip_norm_scales_each_gradient_by_its_own_norm(max_norm: float, p: float, donate: bool) -> None:
    def formula(x: Array, g: Slope) -> Iterator[Array]:
        for t in range(1, STEPS + 1):
            slope = g(t, x)
            size = np.max(abs(slope)) if p == math.inf else np.sum(abs(slope) ** p) ** (1 / p)
            x = x - 0.05 * slope * min(max_norm / size, 1.0)
            yield x

    assert_follows(fl.OptimiserChain(fl.ClipNorm(max_norm, p=p), fl.Descent(0.05)), formula, donate=donate)


# Wrappers

Steps = Callable[[Array], Array]
"""The next step, for a gradient."""


def momentum_steps() -> Steps:
    v: Any = 0.0

    def step(g: Array) -> Array:
        nonlocal v
        v = 0.9 * v + g
        return 0.05 * v

    return step


def adam_steps() -> Steps:
    t, m, v = 0, 0.0, 0.0  # type: tuple[int, Any, Any]

    def step(g: Array) -> Array:
        nonlocal t, m, v
        t, m, v = t + 1, 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        return 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

    return step


INNER: Any = pytest.mark.parametrize(
    ("inner", "make"),
    [(fl.Momentum(0.05), momentum_steps), (fl.Adam(0.05), adam_steps)],
    ids=["Momentum", "Adam"],
)


@INNER
@DONATE
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_moving_average_starts_at_the_first_parameters(
    inner: Any, make: Callable[[], Steps], decay: float, donate: bool
) -> None:
    def formula(x: Array, g: Slope) -> Iterator[Array]:
        step, average = make(), x
        for t in range(1, STEPS + 1):
            x = x - step(g(t, x))
            average = decay * average + (1 - decay) * x
            yield average

    seen = [fl.averaged(state, model) for model, state in run(fl.EMA(inner, decay=decay))]
    assert_alike(seen, {k: list(formula(x, slope(k))) for k, x in START.items()})
    moved = [model for model, _ in run(fl.EMA(inner, decay=decay), donate=donate)]
    alone = [model for model, _ in run(inner)]
    assert all(torch.equal(a[k], b[k]) for a, b in zip(moved, alone, strict=True) for k in START)


@INNER
@DONATE
@pytest.mark.parametrize(("k", "alpha"), [(1, 0.5), (5, 0.5), (7, 0.8), (6, 1.0)])
def test_lookahead_has_the_slow_and_fast_weights_of_the_paper(
    inner: Any, make: Callable[[], Steps], k: int, alpha: float, donate: bool
) -> None:
    def formula(x: Array, g: Slope) -> Iterator[tuple[Array, Array]]:
        """Zhang et al. 2019, algorithm 1; the inner optimiser keeps its state."""
        step, slow = make(), x
        times = itertools.count(1)
        for _ in range(-(-STEPS // k)):
            fast = slow
            for i in range(k):
                t = next(times)
                if t > STEPS:
                    return
                fast = fast - step(g(t, fast))
                if i == k - 1:
                    slow = slow + alpha * (fast - slow)
                    fast = slow
                yield fast, slow

    expected = {name: list(formula(x, slope(name))) for name, x in START.items()}
    fast, slow = [], []
    for model, state in run(fl.Lookahead(inner, k=k, alpha=alpha), donate=donate):
        fast.append(model)
        slow.append(fl.tree.clone(fl.averaged(state, model)))
    for i, seen in enumerate((fast, slow)):
        assert_alike(seen, {name: [step[i] for step in steps] for name, steps in expected.items()})


@INNER
@DONATE
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_step_with_a_gradient_that_is_not_finite_never_was(
    inner: Any, make: Callable[[], Steps], value: float, donate: bool
) -> None:
    spoilt = {1, 2, 10, 30, 31, 32, 33, 99}

    def spoil(model: dict[str, Tensor], t: int) -> dict[str, Tensor]:
        grads = gradients(model, t)
        if t in spoilt:
            grads["w"][1, 2] = value
        return grads

    def formula(x: Array, g: Slope) -> Iterator[Array]:
        step = make()
        for t in range(1, STEPS + 1):
            x = x if t in spoilt else x - step(g(t, x))
            yield x

    expected = {k: list(formula(x, slope(k))) for k, x in START.items()}
    seen, in_a_row, skipped = [], [], []
    for model, state in run(fl.ApplyIfFinite(inner), donate=donate, grads_of=spoil):
        seen.append(model)
        counts = {(int(e.state.in_a_row), int(e.state.skipped)) for e in state.values()}
        ((row, total),) = counts
        in_a_row.append(row)
        skipped.append(total)
    assert_alike(seen, expected)
    assert skipped == [len([u for u in spoilt if u <= t]) for t in range(1, STEPS + 1)]
    assert [in_a_row[t - 1] for t in (1, 2, 3, 10, 11, 33, 34, 99, 100)] == [1, 2, 0, 1, 0, 4, 0, 1, 0]


# Golden numbers


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (fl.Momentum(0.01, 0.9), (0.995, 0.993, 0.9902)),
        (fl.Nesterov(0.001, 0.9), (0.99905, 0.99912, 0.998768)),
        (fl.OAdam(), (0.998, 0.999, 0.9986370872)),
        (fl.AdaBelief(), (0.9988888889, 0.9986051881, 0.9982672239)),
    ],
    ids=lambda x: type(x).__name__ if not isinstance(x, tuple) else "",
)
def test_the_first_three_steps_are_the_golden_ones(rule: Any, expected: tuple[float, ...]) -> None:
    x, seen = double(1), []
    state = fl.setup(rule, x)
    for g in (0.5, -0.25, 0.1):
        x, state = fl.update(state, x, double(g))
        seen.append(round(x.item(), 10))
    assert_close(seen, list(expected), rtol=0, atol=1e-15)


def moved(rule: Any, x: Tensor, g: Tensor) -> Tensor:
    return fl.update(fl.setup(rule, x), x, g)[0]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (fl.WeightDecay(0.1), (-0.1, 7, 87)),
        (fl.OptimiserChain(fl.ClipGrad(2.0), fl.WeightDecay(0.1)), (-0.1, 7, 88)),
        (fl.OptimiserChain(), (0, 8, 97)),
    ],
    ids=["WeightDecay", "ClipGrad, WeightDecay", "empty chain"],
)
def test_links_give_the_golden_numbers(rule: Any, expected: tuple[float, ...]) -> None:
    x = moved(rule, double(1, 10, 100), double(1, 2, 3))
    assert_close(x, double(*expected), rtol=0, atol=1e-13)


def test_descent_gives_the_golden_step() -> None:
    x = moved(fl.Descent(0.1), double(1, 2), double(25, 33))
    assert_close(x, double(-1.5, -1.3), rtol=0, atol=1e-15)


def test_adam_keeps_the_golden_moments_and_none_changes_nothing() -> None:
    x = double(1)
    state = fl.setup(fl.Adam(0.1), x)
    for g, m, v in ((1.0, 0.1, 0.001), (0.0, 0.09, 0.000999)):
        x, state = fl.update(state, x, double(g))
        assert_close(state.state.exp_avg, double(m), rtol=0, atol=1e-16)
        assert_close(state.state.exp_avg_sq, double(v), rtol=0, atol=1e-18)
    with pytest.warns(UserWarning, match="found no gradient"):
        after, kept = fl.update(state, x, None)
    assert torch.equal(after, x)
    assert torch.equal(kept.state.exp_avg, state.state.exp_avg)
    assert torch.equal(kept.state.exp_avg_sq, state.state.exp_avg_sq)
    assert int(kept.state.step) == 2


def test_a_float16_parameter_stays_where_the_step_of_float32_is_below_half_its_spacing() -> None:
    x = torch.tensor([0.579, -0.729, 0.5493], dtype=torch.float16)
    g = torch.tensor([-0.001497, 0.0001875, -0.013176], dtype=torch.float16)
    assert torch.equal(moved(fl.Adam(1e-4), x, g), x)


# Muon


@pytest.mark.parametrize("adjust_lr_fn", ["original", "match_rms_adamw"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(32, 8), (8, 32), (16, 16), (5, 1), (1, 5), (48, 40)], ids=str)
def test_the_steps_of_muon_are_nearly_orthogonal_and_equal_torchs(
    shape: tuple[int, int], dtype: torch.dtype, adjust_lr_fn: Any
) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    rows, columns = shape
    ratio = math.sqrt(max(1, rows / columns)) if adjust_lr_fn == "original" else 0.2 * math.sqrt(max(shape))
    for size in (1e-3, 1.0, 1e3):
        g = size * torch.randn(shape, generator=generator, dtype=dtype)
        x = torch.zeros_like(g)
        rule = fl.Muon(1.0, weight_decay=0.0, adjust_lr_fn=adjust_lr_fn)
        step, _ = fl.steps(fl.setup(rule, x), x, g)
        values = torch.linalg.svdvals(step) / ratio
        assert values.min() > 0.3
        assert values.max() < 1.3
        # The singular vectors are those of the gradient, up to the digits of bfloat16.
        u, _, v = torch.linalg.svd(g, full_matrices=False)
        core = u.mT @ step @ v.mT / ratio
        assert (core - core.diagonal().diag()).abs().max() < 0.1
        p = x.clone().requires_grad_()
        p.grad = g
        torch.optim.Muon([p], lr=1.0, weight_decay=0.0, adjust_lr_fn=adjust_lr_fn).step()
        assert_close(-step, p.detach(), rtol=0, atol=0)
