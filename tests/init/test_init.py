from __future__ import annotations

import math

import pytest
import torch

import fluxlike as fl
from fluxlike import init

SHAPES = [(200, 300), (300, 200), (64, 32, 3, 3), (128, 64, 5), (16, 8, 3, 3, 5)]
every_init = pytest.mark.parametrize("name", init.__all__)


def fans(shape):
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def deviation(name, shape, gain):
    """The standard deviation that the papers give, for a gain."""
    fan_in, fan_out = fans(shape)
    if name.startswith("glorot"):
        return gain * (2 / (fan_in + fan_out)) ** 0.5
    return gain / fan_in**0.5


GAINS = {"glorot_uniform": 1.0, "glorot_normal": 1.0, "kaiming_uniform": 2**0.5, "kaiming_normal": 2**0.5}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_init
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gain", [None, 0.5, 5 / 3])
def test_mean_is_zero_and_variance_is_the_papers(name, shape, gain):
    f = getattr(init, name)
    drawn = torch.cat(
        [(f(shape) if gain is None else f(shape, gain=gain)).flatten() for _ in range(8)]
    ).double()
    wanted = deviation(name, shape, GAINS[name] if gain is None else gain)
    n = drawn.numel()
    excess = 4 / 5 if name.endswith("uniform") else 2  # the variance of x² over the variance's square
    assert abs(drawn.mean().item()) < 5 * wanted / n**0.5
    assert abs(drawn.var().item() / wanted**2 - 1) < 5 * (excess / n) ** 0.5


@pytest.mark.parametrize("name", ["glorot_uniform", "kaiming_uniform"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_uniform_draws_fill_their_bounds_and_no_more(name, shape):
    bound = 3**0.5 * deviation(name, shape, GAINS[name])
    largest = getattr(init, name)(shape).abs().max().item()
    assert 0.99 * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", ["glorot_normal", "kaiming_normal"])
def test_normal_draws_have_tails(name):
    shape = (300, 300)
    x = getattr(init, name)(shape) / deviation(name, shape, GAINS[name])
    share = (x.abs() > 2).double().mean().item()
    assert abs(share - 0.0455) < 5 * (0.0455 / x.numel()) ** 0.5


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        ("glorot_uniform", torch.nn.init.xavier_uniform_),
        ("glorot_normal", torch.nn.init.xavier_normal_),
        ("kaiming_uniform", lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu")),
        ("kaiming_normal", lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="relu")),
    ],
)
def test_draws_after_manual_seed_are_torchs(name, twin):
    torch.manual_seed(3)
    ours = getattr(init, name)((5, 4, 3))
    torch.manual_seed(3)
    torch.testing.assert_close(ours, twin(torch.empty(5, 4, 3)), rtol=1e-6, atol=0)


@every_init
def test_manual_seed_reproduces_and_draws_differ(name):
    f = getattr(init, name)
    torch.manual_seed(1)
    first, second = f((4, 3)), f((4, 3))
    torch.manual_seed(1)
    assert torch.equal(f((4, 3)), first)
    assert not torch.equal(first, second)


@every_init
def test_a_plain_tensor_of_the_shape_in_the_default_dtype(name):
    w = getattr(init, name)([4, 3, 2])
    assert type(w) is torch.Tensor
    assert w.shape == (4, 3, 2)
    assert w.dtype == torch.float32
    assert not w.requires_grad


@every_init
@pytest.mark.usefixtures("float64_default")
def test_another_default_dtype_is_followed(name):
    assert getattr(init, name)((4, 3)).dtype == torch.float64


@every_init
def test_a_default_device_is_followed(name):
    with torch.device("meta"):
        assert getattr(init, name)((4, 3)).is_meta


def test_layers_on_the_meta_device_take_no_memory():
    with torch.device("meta"):
        model = fl.Chain(fl.Dense(100_000, 100_000), fl.BatchNorm(100_000), fl.Embedding(10**9, 1000))
    assert all(t.is_meta for t in fl.fleaves(model))


@pytest.mark.usefixtures("float64_default")
def test_layers_follow_the_default_dtype():
    model = fl.Chain(
        fl.Dense(2, 3), fl.BatchNorm(3), fl.Conv((1,), 1, 1), fl.Embedding(2, 2), fl.LayerNorm(2)
    )
    assert {t.dtype for t in fl.fleaves(model)} == {torch.float64}


@every_init
@pytest.mark.parametrize("shape", [(3,), ()], ids=str)
def test_a_shape_of_fewer_than_two_axes_is_an_error(name, shape):
    text = (
        rf"{name} got the shape \(.*\): weights have at least two axes, \(out, in, …\); biases start at zero"
    )
    with pytest.raises(ValueError, match=text):
        getattr(init, name)(shape)


@every_init
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)], ids=str)
def test_an_empty_weight_is_no_error(name, shape):
    assert getattr(init, name)(shape).shape == shape


@pytest.mark.parametrize(
    ("make", "shape"),
    [
        (lambda i: fl.Dense(3, 4, init=i), (4, 3)),
        (lambda i: fl.Conv((3, 5), 4, 6, groups=2, init=i), (6, 2, 3, 5)),
        (lambda i: fl.Embedding(5, 2, init=i), (5, 2)),
    ],
    ids=["Dense", "Conv", "Embedding"],
)
def test_a_layers_init_is_called_once_with_the_shape_of_its_weight(make, shape):
    calls = []

    def constant(shape):
        calls.append(tuple(shape))
        return torch.full(tuple(shape), 7.0)

    layer = make(constant)
    assert calls == [shape]
    assert (layer.weight == 7).all()


@pytest.mark.parametrize(
    "make", [lambda: fl.Dense(30, 20), lambda: fl.Conv((3, 3), 4, 6)], ids=["Dense", "Conv"]
)
def test_weights_start_glorot_uniform_and_biases_at_zero(make):
    torch.manual_seed(2)
    layer = make()
    torch.manual_seed(2)
    assert torch.equal(layer.weight, init.glorot_uniform(layer.weight.shape))
    assert not layer.bias.any()
