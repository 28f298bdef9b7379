from __future__ import annotations

import math

import pytest
import torch
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
