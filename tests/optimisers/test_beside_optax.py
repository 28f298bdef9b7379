"""A third witness: a hundred steps beside Optax, in float64, of the rules that both write the same way.

Left out, since Optax's formula is another:

- AMSGrad: Optax takes the maximum of second moments that are corrected for their start; torch and we
  correct the maximum.
- ClipGlobalNorm: torch and we divide by ``‖g‖ + 1e-6``, Optax by ``‖g‖``. `ClipNorm` over one
  parameter is Optax's.
- OAdam: at the first step Optax takes ``term₁`` for the term before, which is 0 in the paper and ours.
- Muon: Optax iterates in the dtype of the parameter, torch and we in bfloat16.
- Adafactor with three axes or more: Optax factors the two largest, torch and we the last two.
- Rprop: Optax moves by what its signs and sizes were the step before.
- ScheduleFree with a warm-up, which Optax starts from a rate of 0, and with `r`, which Optax has not.

Compared only where the formulas meet:

- NAdam: Optax has no schedule of the momentum, which is ours when `momentum_decay` is so large that the
  momentum is β₁ from the start.
- RAdam: Optax adds eps to the root of the corrected second moment, torch and we to that of the plain one;
  without eps they are the same.
- AdaGrad: Optax adds eps under the root; without eps they are the same.
- AdaBelief: Optax has an eps for the variance and one for the root, which are equal in the paper.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fluxlike as fl
from fluxlike import schedules as s

WHY = "Optax and JAX, which these steps are compared with, are in the extra: pip install fluxlike[bench]"
jax = pytest.importorskip("jax", reason=WHY)
optax = pytest.importorskip("optax", reason=WHY)

STEPS = 100
DOCS = Path(__file__).parents[2] / "docs"
Model = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def float64() -> Iterator[None]:
    # JAX would warn whenever this process forks from now on, as another test's DataLoader does.
    jax._src.xla_bridge._at_fork_handler_installed = True
    jax.config.update("jax_platforms", "cpu")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Leaves of a few numbers gain nothing by threads, which wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draws(*shape: int) -> Model:
    rng = np.random.default_rng(len(shape))
    return {"w": rng.standard_normal((*shape, 4, 3)), "b": rng.standard_normal((*shape, 5))}


START, NOISE = draws(), draws(STEPS)


def slopes(model: Model, noise: Model) -> Model:
    """Gradients, of theirs or of ours."""
    return {k: 0.3 * x + noise[k] for k, x in model.items()}


def our_run(
    rule: Any, read: Callable[[Any, Any], Model] = lambda state, model: model, noise: Model = NOISE
) -> list[Model]:
    """What is read after each step."""
    model = {k: torch.tensor(x) for k, x in START.items()}
    state, seen = fl.setup(rule, model), []
    for t in range(STEPS):
        grads = slopes(model, {k: torch.from_numpy(x[t]) for k, x in noise.items()})
        model, state = fl.update(state, model, grads)
        seen.append(read(state, model))
    return seen


def their_run(
    optimiser: Any,
    *,
    first: Callable[[Any], Any] = lambda model: model,
    at: Callable[[Any], Any] = lambda params: params,
    read: Callable[[Any, Any], Any] = lambda state, params: params,
    noise: Model = NOISE,
) -> Any:
    """What is read after each step, stacked.

    Args:
        optimiser: of Optax.
        first: the parameters that it moves, made from a model.
        at: where gradients are taken, made from the parameters.
        read: what to compare, from its state and the parameters.
        noise: of the gradients.
    """

    @jax.jit
    def run(params: Any, noise: Model) -> Any:
        def step(carry: Any, noise: Model) -> Any:
            params, state = carry
            updates, state = optimiser.update(slopes(at(params), noise), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), read(state, params)

        return jax.lax.scan(step, (params, optimiser.init(params)), noise)[1]

    return run(first({k: jax.numpy.asarray(x) for k, x in START.items()}), noise)


def assert_alike(seen: list[Model], expected: Model) -> None:
    for k, found in expected.items():
        ours, theirs = np.stack([np.asarray(model[k]) for model in seen]), np.asarray(found)
        assert ours.dtype == theirs.dtype == np.float64
        assert not np.array_equal(theirs[0], theirs[-1])  # it moved
        for t in range(STEPS):
            np.testing.assert_allclose(
                ours[t], theirs[t], rtol=1e-12, atol=1e-12, err_msg=f"first at step {t}, {k}"
            )


def in_float64(schedule: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A schedule at a step in float64; Optax's counters are int32, which JAX divides in float32."""
    return lambda step: schedule(jax.numpy.asarray(step, jax.numpy.float64))


def adafactor(lr: float, power: float = 0.8, d: float = 1.0, decay: float = 0.0) -> Any:
    """Optax's adafactor, whose decay rate is float32, with one of float64; eps is never reached."""
    rate = in_float64(lambda t: 1 - (t + 1) ** -power)
    relative = in_float64(lambda t: jax.numpy.minimum(lr, 1 / jax.numpy.sqrt(t + 1)))
    return optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=1, decay_rate_fn=lambda t, _: rate(t)),
        optax.clip_by_block_rms(d),
        optax.scale_by_learning_rate(relative, flip_sign=False),
        optax.scale_by_param_block_rms(),
        optax.add_decayed_weights(decay),
        optax.scale(-1.0),
    )


# Rules

RULES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "Descent": (fl.Descent(0.05), lambda: optax.sgd(0.05)),
    "Momentum": (fl.Momentum(0.05, 0.8), lambda: optax.sgd(0.05, momentum=0.8)),
    "Nesterov": (fl.Nesterov(0.05, 0.8), lambda: optax.sgd(0.05, momentum=0.8, nesterov=True)),
    "Adam": (fl.Adam(0.05), lambda: optax.adam(0.05)),
    "Adam, other numbers": (
        fl.Adam(0.05, (0.8, 0.95), 1e-3),
        lambda: optax.adam(0.05, b1=0.8, b2=0.95, eps=1e-3),
    ),
    "Adam, weight_decay": (
        fl.Adam(0.05, weight_decay=0.1),
        lambda: optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.05)),
    ),
    "AdamW": (fl.AdamW(0.05, weight_decay=0.3), lambda: optax.adamw(0.05, weight_decay=0.3)),
    "AdamW, uncoupled": (
        fl.AdamW(0.05, weight_decay=0.01, couple=False),
        lambda: optax.chain(
            optax.scale_by_adam(), optax.scale(0.05), optax.add_decayed_weights(0.01), optax.scale(-1.0)
        ),
    ),
    "NAdam": (fl.NAdam(0.05, momentum_decay=1e6), lambda: optax.nadam(0.05)),
    "NAdam, other numbers": (
        fl.NAdam(0.05, (0.8, 0.95), 1e-3, momentum_decay=1e6),
        lambda: optax.nadam(0.05, b1=0.8, b2=0.95, eps=1e-3),
    ),
    "RAdam": (fl.RAdam(0.05, eps=0.0), lambda: optax.radam(0.05, eps=0.0)),
    "RAdam, other numbers": (
        fl.RAdam(0.05, (0.8, 0.9), eps=0.0),
        lambda: optax.radam(0.05, b1=0.8, b2=0.9, eps=0.0),
    ),
    "AdaMax": (fl.AdaMax(0.05), lambda: optax.adamax(0.05)),
    "AdaMax, other numbers": (
        fl.AdaMax(0.05, (0.8, 0.9), 1e-2),
        lambda: optax.adamax(0.05, b1=0.8, b2=0.9, eps=1e-2),
    ),
    "AdaGrad": (
        fl.AdaGrad(0.3, initial_accumulator_value=0.1, eps=0.0),
        lambda: optax.adagrad(0.3, initial_accumulator_value=0.1, eps=0.0),
    ),
    "AdaDelta": (
        fl.AdaDelta(0.5, 0.8, 1e-4, 0.1),
        lambda: optax.adadelta(0.5, rho=0.8, eps=1e-4, weight_decay=0.1),
    ),
    "RMSProp": (
        fl.RMSProp(0.02, 0.9, 1e-3),
        lambda: optax.rmsprop(0.02, decay=0.9, eps=1e-3, eps_in_sqrt=False),
    ),
    "RMSProp, centered, momentum": (
        fl.RMSProp(0.02, 0.9, 1e-3, momentum=0.8, centered=True),
        lambda: optax.rmsprop(0.02, decay=0.9, eps=1e-3, eps_in_sqrt=False, centered=True, momentum=0.8),
    ),
    "Lion": (
        fl.Lion(0.01, (0.8, 0.95), weight_decay=0.3),
        lambda: optax.lion(0.01, b1=0.8, b2=0.95, weight_decay=0.3),
    ),
    "Lamb": (
        fl.Lamb(0.02, (0.8, 0.95), weight_decay=0.1),
        lambda: optax.lamb(0.02, b1=0.8, b2=0.95, weight_decay=0.1),
    ),
    "AdaBelief": (
        fl.AdaBelief(0.02, (0.8, 0.95), 1e-6),
        lambda: optax.adabelief(0.02, b1=0.8, b2=0.95, eps=1e-6, eps_root=1e-6),
    ),
    "Adafactor": (fl.Adafactor(0.3, eps=(1e-15, 1e-3)), lambda: adafactor(0.3)),
    "Adafactor, other numbers": (
        fl.Adafactor(0.3, beta2_decay=-0.5, eps=(1e-15, 1e-3), d=2.0, weight_decay=0.1),
        lambda: adafactor(0.3, power=0.5, d=2.0, decay=0.03),
    ),
}


@pytest.mark.parametrize("name", RULES)
def test_a_hundred_steps_equal_optaxs(name: str) -> None:
    rule, theirs = RULES[name]
    assert_alike(our_run(rule), their_run(theirs()))


def _told() -> Iterator[tuple[str, str]]:
    """What the docs say to write for the numbers of Optax, as pairs of code with a rate ``lr``."""
    section = (DOCS / "coming_from/equinox.md").read_text().split("\n## Rules\n")[1].split("\n## ")[0]
    alike, _, table = section.partition("the same numbers with the same rate")
    classes = {name.lower(): name for name in fl.__all__}
    for name in re.findall(r"`(\w+)`", alike):
        yield f"optax.{name}(lr)", f"fl.{classes[name]}(lr)"
    for theirs, ours in re.findall(r"^\| (`.*`) \| (`.*) \|$", table, re.MULTILINE):
        if "(lr" in theirs:
            pairs = zip(re.findall(r"`(.+?)`", theirs), re.findall(r"`(.+?)`", ours), strict=True)
            yield from ((f"optax.{their}", our) for their, our in pairs)


@pytest.mark.parametrize(("theirs", "ours"), list(_told()))
def test_what_the_docs_say_to_write_for_optaxs_numbers_gives_them(theirs: str, ours: str) -> None:
    names = {"optax": optax, "fl": fl, "lr": 0.05}
    assert_alike(our_run(eval(ours, names)), their_run(eval(theirs, names)))


# Links and wrappers


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_clipped_entries_equal_optaxs(delta: float) -> None:
    rule = fl.OptimiserChain(fl.ClipGrad(delta), fl.Adam(0.05))
    assert_alike(our_run(rule), their_run(optax.chain(optax.clip(delta), optax.adam(0.05))))


@pytest.mark.parametrize("max_norm", [0.1, 2.0])
def test_the_clipped_norm_of_one_parameter_equals_optaxs_global_one(max_norm: float) -> None:
    alone = {"w": NOISE["w"]}
    model, seen = torch.tensor(START["w"]), []
    state = fl.setup(fl.OptimiserChain(fl.ClipNorm(max_norm), fl.Momentum(0.05)), model)
    for noise in alone["w"]:
        model, state = fl.update(state, model, 0.3 * model + torch.from_numpy(noise))
        seen.append({"w": model})
    optimiser = optax.chain(optax.clip_by_global_norm(max_norm), optax.sgd(0.05, momentum=0.9))
    assert_alike(seen, their_run(optimiser, first=lambda model: {"w": model["w"]}, noise=alone, at=dict))


@pytest.mark.parametrize("n", [1, 3, 8])
def test_accumulated_gradients_equal_optaxs(n: int) -> None:
    optimiser = optax.MultiSteps(optax.adam(0.05), n, accumulator_dtype=jax.numpy.float64)
    assert_alike(our_run(fl.OptimiserChain(fl.AccumGrad(n), fl.Adam(0.05))), their_run(optimiser))


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_moving_average_equals_optaxs(decay: float) -> None:
    seen = our_run(fl.EMA(fl.Adam(0.05), decay=decay), fl.averaged)
    average, expected = {k: jax.numpy.asarray(x) for k, x in START.items()}, []
    run = their_run(optax.adam(0.05))
    for t in range(STEPS):
        average = optax.incremental_update({k: x[t] for k, x in run.items()}, average, 1 - decay)
        expected.append(average)
    assert_alike(seen, {k: np.stack([model[k] for model in expected]) for k in START})


@pytest.mark.parametrize(("k", "alpha"), [(5, 0.5), (7, 0.8)])
def test_lookahead_equals_optaxs(k: int, alpha: float) -> None:
    run = their_run(
        optax.lookahead(optax.adam(0.05), k, alpha),
        first=optax.LookaheadParams.init_synced,
        at=lambda params: params.fast,
    )
    rule = fl.Lookahead(fl.Adam(0.05), k=k, alpha=alpha)
    assert_alike(our_run(rule), run.fast)
    assert_alike(our_run(rule, fl.averaged), run.slow)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_step_is_skipped_where_optax_skips_it(value: float) -> None:
    noise = {k: x.copy() for k, x in NOISE.items()}
    for t in (0, 1, 7, 50, 51, 52, 98):
        noise["b"][t, 3] = value
    rule = fl.ApplyIfFinite(fl.Adam(0.05))
    counts: Any = their_run(
        optax.apply_if_finite(optax.adam(0.05), STEPS),
        read=lambda state, params: (params, state.notfinite_count, state.total_notfinite),
        noise=noise,
    )
    assert_alike(our_run(rule, noise=noise), counts[0])
    seen = our_run(
        rule, lambda state, _: {k: (e.state.in_a_row, e.state.skipped) for k, e in state.items()}, noise
    )
    for k in START:
        assert [int(step[k][0]) for step in seen] == counts[1].tolist()
        assert [int(step[k][1]) for step in seen] == counts[2].tolist()


FREE: dict[str, tuple[Any, Callable[[], Any]]] = {
    "the defaults": (fl.ScheduleFree(0.05), lambda: optax.contrib.schedule_free_adamw(0.05)),
    "other numbers": (
        fl.ScheduleFree(0.05, (0.7, 0.95), 1e-3, weight_decay=0.2),
        lambda: optax.contrib.schedule_free_adamw(0.05, b1=0.7, b2=0.95, eps=1e-3, weight_decay=0.2),
    ),
    "power of the weights": (
        fl.ScheduleFree(0.05, weight_lr_power=1.0, weight_decay=0.1),
        lambda: optax.contrib.schedule_free_adamw(0.05, weight_lr_power=1.0, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("name", FREE)
def test_schedule_free_equals_optaxs(name: str) -> None:
    rule, theirs = FREE[name]
    y, x = their_run(
        theirs(),
        read=lambda state, params: (params, optax.contrib.schedule_free_eval_params(state, params)),
    )
    assert_alike(our_run(rule), y)
    assert_alike(our_run(rule, fl.averaged), x)


SCHEDULES: dict[str, tuple[Any, Callable[[], Any]]] = {
    "Exp": (s.Exp(0.1, 0.97), lambda: optax.exponential_decay(0.1, 1, 0.97)),
    "Poly": (s.Poly(0.1, 2.0, 80), lambda: optax.polynomial_schedule(0.1, 0.0, 2.0, 80)),
    "Cosine": (s.Cosine(0.1, 0.01, 80), lambda: optax.cosine_decay_schedule(0.1, 80, alpha=0.1)),
    "Step": (
        s.Step(0.1, 0.3, (20, 5, 50)),
        lambda: optax.piecewise_constant_schedule(0.1, {20: 0.3, 25: 0.3, 75: 0.3}),
    ),
    "Warmup": (
        s.Warmup(s.Cosine(0.1, 0.01, 70), 10, start=0.02),
        lambda: optax.warmup_cosine_decay_schedule(0.02, 0.1, 10, 80, 0.01),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_scheduled_rate_equals_optaxs(name: str) -> None:
    ours, theirs = SCHEDULES[name]
    assert_alike(our_run(fl.Scheduled(fl.Adam(), lr=ours)), their_run(optax.adam(in_float64(theirs()))))
