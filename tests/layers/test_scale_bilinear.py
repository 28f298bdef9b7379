"""Scale, Bilinear and PReLU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fluxlike as fl


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_scale_starts_as_the_identity():
    x = torch.randn(4, 2, 3)
    assert torch.equal(fl.Scale(2, 3)(x), x)
    assert torch.equal(fl.Scale(3, bias=False)(x), x)


def test_the_activation_of_scale_comes_after_the_sizes_or_by_name():
    for layer in (fl.Scale(2, fl.relu), fl.Scale(2, activation=fl.relu)):
        assert layer(torch.tensor([[-1.0, 1.0]])).tolist() == [[0.0, 1.0]]
        assert repr(layer) == "Scale(2, relu)  # 4 parameters"


def test_an_axis_of_size_1_is_shared_and_no_other_axis_is():
    scale = fl.at(fl.Scale(2, 1, bias=False), ".weight").set(torch.tensor([[2.0], [3.0]]))
    assert scale(torch.ones(1, 2, 2)).tolist() == [[[2.0, 2.0], [3.0, 3.0]]]
    with pytest.raises(ValueError, match=r"Scale takes the shape \(…, 2, any\), found \(1, 1, 2\)"):
        scale(torch.ones(1, 1, 2))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(), (4,), (4, 2), (0,)], ids=str)
def test_bilinear_equals_torchs(bias, shape):
    layer = fl.f64(fl.Bilinear((3, 5), 2, bias=bias))
    twin = nn.Bilinear(3, 5, 2, bias=bias).double()
    twin.load_state_dict({k: v for k, v in vars(layer).items() if isinstance(v, torch.Tensor)})
    x, y = (torch.randn(*shape, n, dtype=torch.float64) for n in (3, 5))
    exact(layer(x, y), twin(x, y).detach())


def test_bilinear_takes_two_inputs_a_tuple_of_them_or_one_that_is_both():
    layer, x = fl.Bilinear(3, 2), torch.randn(4, 3)
    assert torch.equal(layer(x), layer(x, x))
    assert torch.equal(layer((x, 2 * x)), layer(x, 2 * x))


def test_bilinear_is_linear_in_each_input():
    layer = fl.f64(fl.Bilinear((3, 4), 2, bias=False))
    a, b, c = (torch.randn(5, n, dtype=torch.float64) for n in (3, 3, 4))
    exact(layer(2 * a + b, c), 2 * layer(a, c) + layer(b, c))


def test_prelu_of_one_slope_is_leaky_relu():
    x = torch.randn(3, 4)
    torch.testing.assert_close(fl.PReLU()(x), fl.leaky_relu(x, 0.25))
    assert fl.PReLU()(torch.tensor(-4.0)).item() == -1


def test_prelu_as_an_activation_is_trained_with_its_layer():
    layer = fl.Dense(2, 3, fl.PReLU(3))
    assert [path for path, _ in fl.trainables(layer, paths=True)] == [
        ".weight",
        ".bias",
        ".activation.weight",
    ]
    grads = fl.gradient(lambda m: m(torch.ones(4, 2)).sum(), layer)
    assert grads.activation.weight.shape == (3,)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fl.Scale(), r"Scale\(\): write the sizes of the last axes, then perhaps an activation"),
        (lambda: fl.Scale(fl.relu), r"write the sizes of the last axes"),
        (lambda: fl.Scale(2, fl.relu, 3), r"write the sizes of the last axes"),
        (lambda: fl.Scale(2, fl.relu, fl.tanh), r"write the sizes of the last axes"),
        (lambda: fl.Bilinear((3, 4, 5), 2), r"in_features=\(3, 4, 5\): write the lengths of two inputs"),
        (
            lambda: fl.Bilinear((3, 4), 2)(torch.ones(5, 3), torch.ones(5, 3)),
            r"Bilinear takes the shape \(…, 4\), found \(5, 3\)",
        ),
        (
            lambda: fl.Bilinear((3, 4), 2)(torch.ones(5, 3), torch.ones(1, 4)),
            r"alike but for their last axes, found \(5, 3\) and \(1, 4\)",
        ),
        (
            lambda: fl.Bilinear((3, 4), 2)((torch.ones(5, 3),)),
            r"Bilinear takes two inputs, or a tuple of two, found a tuple of 1",
        ),
        (
            lambda: fl.Bilinear(3, 2)(torch.ones(5, 3), torch.ones(5, 3).double()),
            r"Bilinear holds float32, its input is float64; write x\.to\(torch\.float32\)",
        ),
        (
            lambda: fl.PReLU(3)(torch.ones(5, 3).double()),
            r"PReLU holds float32, its input is float64; write x\.to\(torch\.float32\)",
        ),
    ],
)
def test_what_can_not_be_is_an_error_that_shows_it(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_torchs_order_of_bilinears_arguments_is_an_error_that_shows_ours():
    with pytest.raises(TypeError, match=r"Bilinear\(3, 4, 2\): write Bilinear\(\(3, 4\), 2\)"):
        fl.Bilinear(3, 4, 2)
