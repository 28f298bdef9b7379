"""Recurrent layers under every derivative, mapped and traced: kernels and formulas give the same numbers."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import fluxlike as fl
from fluxlike._private.compiler import build
from fluxlike.layers.recurrent import sequence

LAYERS = [fl.RNN, fl.LSTM, fl.GRU]
every_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda c: c.__name__)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(params=[False, True], ids=["as on the CPU", "as on a GPU"])
def by_rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether kernels have a derivative of the first order alone, as cuDNN's."""
    if request.param:
        monkeypatch.setattr(sequence, "_has_every_derivative", lambda x: False)
    return request.param


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "_can_compile", lambda: False)


def floats(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def same(actual: Any, expected: Any, tolerance: float = 1e-9) -> None:
    for mine, other in zip(fl.fleaves(actual), fl.fleaves(expected), strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)


def by_cells(model: Any) -> Any:
    """The same numbers by `Recurrence`: operations of torch that have every derivative."""
    return fl.Recurrence(model.cells[0])


def setting(layer: Any, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    model = fl.fmap(lambda t: t.to(dtype), layer(2, 3))
    return model, torch.randn(2, 4, 2, dtype=dtype)


def loss(model: Any, x: Tensor) -> Tensor:
    return model(x).square().sum()


def through_cells(model: Any, x: Tensor) -> Tensor:
    return by_cells(model)(x).square().sum()


def steepness(f: Any) -> Any:
    """The squared norm of a gradient."""
    return lambda m, x: sum(g.square().sum() for g in fl.fleaves(fl.gradient(f, m, x)))


DERIVATIVES = {
    "gradient": lambda f, m, x: fl.gradient(f, m, x),
    "gradient by the input": lambda f, m, x: fl.gradient(lambda x: f(m, x), x),
    "gradient of a gradient": lambda f, m, x: fl.gradient(steepness(f), m, x),
    "hvp": lambda f, m, x: fl.hvp(lambda m: f(m, x), m, v=m),
    "pushforward": lambda f, m, x: fl.pushforward(lambda m: f(m, x), m, v=m),
    "hessian": lambda f, m, x: fl.hessian(lambda x: f(m, x), x),
    "jacobian": lambda f, m, x: fl.jacobian(lambda m: f(m, x), m),
    "per_example_gradient": lambda f, m, x: fl.per_example_gradient(f, m, x),
    "a mapped gradient": lambda f, m, x: fl.vmap(lambda x: fl.gradient(lambda x: f(m, x[None]), x))(x),
    "a pullback, mapped": lambda f, m, x: mapped_pullback(lambda x: f(m, x), x),
    "checkpoint": lambda f, m, x: fl.gradient(lambda m: fl.checkpoint(f)(m, x), m),
    "torch.func.grad": lambda f, m, x: torch.func.grad(lambda x: f(m, x))(x),
    "torch.func.jacfwd": lambda f, m, x: torch.func.jacfwd(lambda x: f(m, x))(x),
}


def mapped_pullback(f: Any, x: Tensor) -> Any:
    _, back = fl.pullback(f, x)
    return fl.vmap(back)(torch.arange(3, dtype=x.dtype))


@every_layer
@pytest.mark.parametrize("name", DERIVATIVES)
def test_a_derivative_is_that_of_the_cells(layer: Any, name: str, by_rule: bool):
    model, x = setting(layer)
    same(DERIVATIVES[name](loss, model, x), DERIVATIVES[name](through_cells, model, x))


@pytest.mark.parametrize("name", DERIVATIVES)
@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_a_derivative_of_onednns_lstm_is_that_of_the_cells(name: str, by_rule: bool):
    model, x = setting(fl.LSTM, torch.float32)
    same(DERIVATIVES[name](loss, model, x), DERIVATIVES[name](through_cells, model, x), 1e-4)


@every_layer
@pytest.mark.parametrize("name", ["jacobian", "hessian", "gradient of a gradient", "per_example_gradient"])
@pytest.mark.filterwarnings("error:There is a performance drop:UserWarning")
def test_no_derivative_is_mapped_over_a_kernel_one_call_at_a_time(layer: Any, name: str):
    model, x = setting(layer, torch.float32)
    same(DERIVATIVES[name](loss, model, x), DERIVATIVES[name](through_cells, model, x), 1e-4)


@every_layer
def test_gradgradcheck(layer: Any, by_rule: bool):
    model, x = fl.f64(layer(2, 2, bidirectional=True)), floats(2, 3, 2)
    parameters = [p.clone().requires_grad_() for p in (x, *fl.trainables(model))]

    def forward(x: Tensor, *values: Tensor) -> Tensor:
        new = {id(p): v for p, v in zip(fl.trainables(model), values, strict=True)}
        return fl.fmap(lambda t: new[id(t)], model)(x)

    assert torch.autograd.gradcheck(forward, parameters)
    assert torch.autograd.gradgradcheck(forward, parameters, fast_mode=True, rtol=1e-6, atol=1e-8)


@every_layer
def test_a_backward_pass_can_run_twice(layer: Any, by_rule: bool):
    model, x = setting(layer)
    x.requires_grad_()
    y = loss(model, x)
    first = torch.autograd.grad(y, x, retain_graph=True)
    same(torch.autograd.grad(y, x), first)


@every_layer
def test_an_output_that_is_not_used_has_no_part(layer: Any, by_rule: bool):
    model, x = setting(layer)

    def last(m: Any) -> Tensor:
        _, state = m(x, m.initial_state(x))
        return fl.fleaves(state)[-1].sum()

    def wanted(m: Any) -> Tensor:
        recurrence = by_cells(m)
        return fl.fleaves(recurrence(x, recurrence.initial_state(x))[1])[-1].sum()

    same(fl.gradient(last, model), fl.gradient(wanted, model))


@every_layer
def test_a_gradient_by_the_state(layer: Any, by_rule: bool):
    model, x = setting(layer)
    lengths = torch.tensor([3, 1])
    start = fl.fmap(torch.randn_like, model.initial_state(x))

    def f(state: Any) -> Tensor:
        return model(x, state, lengths=lengths)[0].square().sum()

    def wanted(state: Any) -> Tensor:
        return by_cells(model)(x, fl.fmap(lambda t: t[:, 0], state), lengths=lengths)[0].square().sum()

    same(fl.gradient(f, start), fl.gradient(wanted, start))


@every_layer
def test_second_derivatives_are_of_the_autocast_of_the_forward_pass(layer: Any, by_rule: bool):
    model, x = setting(layer, torch.float32)
    half = x.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):  # else these two dtypes can't be multiplied
        y = loss(model, half)
    (g,) = torch.autograd.grad(y, half, create_graph=True)
    (second,) = torch.autograd.grad(g.float().square().sum(), half)
    exactly = fl.gradient(steepness(lambda x, _: loss(model, x)), x, None)
    torch.testing.assert_close(second.float(), exactly, rtol=0.2, atol=0.05)


# jit


def loops(lowered: Any) -> Counter[str]:
    text = str(lowered)
    return Counter({"scan": text.count("higher_order.scan("), "lines": len(text.splitlines())})


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ragged", [False, True])
def test_a_trace_is_as_long_for_many_steps_as_for_few(layer: Any, dtype: torch.dtype, ragged: bool):
    model = fl.fmap(lambda t: t.to(dtype), layer(2, 3, num_layers=2))

    def step(model: Any, x: Tensor, lengths: Tensor) -> Any:
        options = {"lengths": lengths} if ragged else {}
        return fl.gradient(lambda m: m(x, **options).sum(), model)

    def trace(steps: int) -> Counter[str]:
        return loops(fl.jit(step).lower(model, torch.randn(2, steps, 2, dtype=dtype), torch.tensor([2, 1])))

    few = trace(3)
    assert few == trace(40)
    assert (few["scan"] == 0) == (layer is fl.LSTM and dtype is torch.float32 and not ragged)


def test_the_trace_of_a_second_derivative_is_as_long_for_many_steps_as_for_few():
    def trace(steps: int) -> Counter[str]:
        step = fl.jit(lambda m, x: fl.gradient(steepness(loss), m, x))
        return loops(step.lower(fl.LSTM(2, 3), torch.randn(2, steps, 2)))

    assert trace(3) == trace(20)


@every_layer
@pytest.mark.parametrize("name", ["gradient", "gradient of a gradient", "jacobian", "pushforward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_traced_derivative_is_the_eager_one(layer: Any, name: str, dtype: torch.dtype, uncompiled: None):
    model, x = setting(layer, dtype)
    derive = DERIVATIVES[name]
    tolerance = 1e-4 if dtype is torch.float32 else 1e-9
    same(fl.jit(lambda m, x: derive(loss, m, x))(model, x), derive(through_cells, model, x), tolerance)


@every_layer
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_compiled_step_is_the_eager_one(layer: Any, dtype: torch.dtype):
    model, x = setting(layer, dtype)
    lengths = torch.tensor([4, 2])

    def step(model: Any, x: Tensor, lengths: Tensor) -> Any:
        whole = fl.gradient(loss, model, x)
        return whole, fl.gradient(lambda m: m(x, lengths=lengths).square().sum(), model)

    same(fl.jit(step)(model, x, lengths), step(model, x, lengths), 1e-4 if dtype is torch.float32 else 1e-9)


@every_layer
def test_lengths_under_jit_are_inputs_of_the_trace(layer: Any, uncompiled: None):
    model, x = setting(layer)
    f = fl.jit(lambda m, x, lengths: m(x, lengths=lengths))
    for lengths in ([4, 2], [1, 3]):
        same(f(model, x, torch.tensor(lengths)), model(x, lengths=torch.tensor(lengths)))
    assert f.cache_info().traces == 1


@every_layer
def test_an_ensemble_trains_as_its_members_alone(layer: Any):
    members = [fl.f64(layer(2, 3)) for _ in range(3)]
    x = floats(3, 2, 4, 2)

    def step(model: Any, x: Tensor) -> Any:
        grads = fl.gradient(loss, model, x)
        state = fl.setup(fl.Momentum(0.1), model)
        return fl.update(state, model, grads)[0]

    together = fl.vmap(step)(fl.stack(members), x)
    for i, member in enumerate(members):
        same(fl.unstack(together)[i], step(member, x[i]))
