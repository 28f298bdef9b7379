from __future__ import annotations

import functools
import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fluxlike as fl

MODULES = {
    "celu": nn.CELU(), "elu": nn.ELU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh"), "glu": nn.GLU(),
    "hardshrink": nn.Hardshrink(), "hardsigmoid": nn.Hardsigmoid(), "hardswish": nn.Hardswish(),
    "hardtanh": nn.Hardtanh(), "leaky_relu": nn.LeakyReLU(), "logsigmoid": nn.LogSigmoid(), "mish": nn.Mish(),
    "relu": nn.ReLU(), "relu6": nn.ReLU6(), "selu": nn.SELU(), "sigmoid": nn.Sigmoid(), "silu": nn.SiLU(),
    "softplus": nn.Softplus(), "softshrink": nn.Softshrink(), "softsign": nn.Softsign(), "swish": nn.SiLU(),
    "tanh": nn.Tanh(), "tanhshrink": nn.Tanhshrink(),
}  # fmt: skip
FORMULAS = {
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "hardsigmoid": lambda x: min(max(x / 6 + 0.5, 0), 1),
    "hardswish": lambda x: x * min(max(x / 6 + 0.5, 0), 1),
    "logsigmoid": lambda x: -math.log(1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log(1 + math.exp(x))),
    "relu6": lambda x: min(max(x, 0), 6),
    "softsign": lambda x: x / (1 + abs(x)),
    "swish": lambda x: x / (1 + math.exp(-x)),
    "tanhshrink": lambda x: x - math.tanh(x),
}
X = torch.linspace(-8, 8, 66, dtype=torch.float64)  # not at a kink


@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients_equal_those_of_torchs_module(name):
    x = X.clone().requires_grad_()
    y = MODULES[name](x)
    y.sum().backward()
    assert torch.equal(getattr(fl, name)(X), y.detach())
    assert torch.equal(fl.gradient(lambda x: getattr(fl, name)(x).sum(), X), x.grad)


@pytest.mark.parametrize("name", FORMULAS)
def test_values_are_those_of_the_formula(name):
    wanted = torch.tensor([FORMULAS[name](x) for x in X.tolist()], dtype=torch.float64)
    torch.testing.assert_close(getattr(fl, name)(X), wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"swish", "glu"}))
def test_an_activation_prints_under_its_name_inside_a_layer(name):
    assert repr(fl.Dense(1, 1, getattr(fl, name))) == f"Dense(1, 1, {name})  # 2 parameters"


def test_swish_is_flux_s_name_of_silu():
    assert fl.swish is fl.silu


def test_logsigmoid_stays_finite_where_the_sigmoid_is_zero():
    assert fl.logsigmoid(torch.tensor(-1000.0)).item() == -1000


@pytest.mark.parametrize("name", MODULES)
def test_no_activation_can_be_told_to_write_into_its_input(name):
    x = X.clone()
    with pytest.raises(TypeError):
        getattr(fl, name)(x, inplace=True)
    assert torch.equal(x, X)
    f = getattr(fl, name)
    assert inspect.isbuiltin(f) or "inplace" not in inspect.signature(f).parameters


ARGUMENTS = {
    "celu": {"alpha": 0.3}, "elu": {"alpha": 0.3}, "leaky_relu": {"negative_slope": 0.2},
    "hardtanh": {"min_val": -0.5, "max_val": 2.0},
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_arguments_of_an_activation_are_those_of_torch(name):
    ours, theirs, given = getattr(fl, name), getattr(F, name), ARGUMENTS[name]
    assert torch.equal(ours(X, **given), theirs(X, **given))
    assert torch.equal(ours(X, *given.values()), theirs(X, **given))


@pytest.mark.parametrize("name", ["relu6", "silu", *ARGUMENTS])
def test_a_file_saved_with_torchs_function_loads_into_a_model_with_ours(name, tmp_path):
    before = fl.Chain(fl.Dense(2, 2, getattr(F, name)), getattr(F, name))
    fl.save(tmp_path / "before", before)
    after = fl.load(tmp_path / "before", like=fl.Chain(fl.Dense(2, 2, getattr(fl, name)), getattr(fl, name)))
    x = torch.randn(3, 2)
    assert torch.equal(after(x), before(x))


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "glu"])
class TestTheAxisOfTheClasses:
    def test_is_the_one_beside_the_batch(self, name):
        f, theirs = getattr(fl, name), getattr(F, name)
        x = torch.randn(3, 4)
        assert torch.equal(f(x), theirs(x, dim=1))
        assert torch.equal(torch.stack([f(row) for row in x]), f(x))
        assert torch.equal(fl.vmap(f)(x), f(x))

    def test_is_to_be_named_where_any_of_several_may_be_meant(self, name):
        f = getattr(fl, name)
        wanted = rf"{name} takes the shape \(C,\) or \(N, C\), found \(2, 4, 6\); .* dim=-1 for \(N, L, C\)"
        with pytest.raises(ValueError, match=wanted):
            f(torch.zeros(2, 4, 6))
        with pytest.raises(ValueError, match=r"dim=1 for \(N, C, H, W\)"):
            f(torch.zeros(2, 4, 6, 6))
        x = torch.randn(2, 4, 6)
        assert torch.equal(f(x, -1), getattr(F, name)(x, dim=-1))
        assert torch.equal(f(x, dim=1), getattr(F, name)(x, dim=1))

    def test_is_asked_for_inside_a_model_by_the_layer_s_path_and_how_to_write_it(self, name):
        f, x = getattr(fl, name), torch.randn(2, 5, 3)
        with pytest.raises(
            fl.LayerError, match=rf"\.layers\[0\].*functools\.partial\(fluxlike\.{name}, dim=-1\)"
        ):
            fl.Chain(fl.Dense(3, 4, f))(x)
        with pytest.raises(fl.LayerError, match=r"\.layers\[1\].*dim=-1"):
            fl.Chain(fl.Dense(3, 4), f)(x)
        last = functools.partial(f, dim=-1)
        layer = fl.Dense(3, 4, last)
        torch.testing.assert_close(fl.Chain(layer)(x), last(F.linear(x, layer.weight, layer.bias)))


def test_a_model_may_end_in_a_softmax_of_its_scores():
    inside, step = fl.Dense(3, 4, fl.softmax), fl.Chain(fl.Dense(3, 4), fl.softmax)
    step = fl.at(step, ".layers[0]").set(fl.at(inside, ".activation").set(fl.identity))
    x = torch.randn(5, 3)
    assert torch.equal(inside(x), step(x))
    torch.testing.assert_close(inside(x).sum(1), torch.ones(5))
    assert torch.allclose(inside(x[0]), inside(x)[0])
