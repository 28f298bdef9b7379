"""Initial values: variances of the papers, bounds, and what a key, a default dtype or device decides."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike import init
from fluxlike._private.compiler import build

SHAPES = [(200, 300), (300, 200), (64, 32, 3, 3), (128, 64, 5), (16, 8, 3, 3, 5)]
SCALED = [
    "glorot_uniform",
    "glorot_normal",
    "kaiming_uniform",
    "kaiming_normal",
    "lecun_uniform",
    "lecun_normal",
]
every_scaled = pytest.mark.parametrize("name", SCALED)
every_init = pytest.mark.parametrize("name", [n for n in init.__all__ if n != "declare_weights"])
every_draw = pytest.mark.parametrize("name", [*SCALED, "orthogonal", "sparse", "truncated_normal"])


def call(name, shape, **settings):
    """The init of a shape, with what it needs besides."""
    return getattr(init, name)(shape, *((0.5,) if name == "sparse" else ()), **settings)


def fans(shape):
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def deviation(name, shape, gain):
    """The standard deviation that the papers give, for a gain."""
    fan_in, fan_out = fans(shape)
    if name.startswith("glorot"):
        return gain * (2 / (fan_in + fan_out)) ** 0.5
    return gain / fan_in**0.5


GAINS = {name: 2**0.5 if name.startswith("kaiming") else 1.0 for name in SCALED}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def float64_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@every_scaled
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


@pytest.mark.parametrize("name", ["glorot_uniform", "kaiming_uniform", "lecun_uniform"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_uniform_draws_fill_their_bounds_and_no_more(name, shape):
    bound = 3**0.5 * deviation(name, shape, GAINS[name])
    largest = getattr(init, name)(shape).abs().max().item()
    assert 0.99 * bound < largest <= bound * (1 + 1e-6)


@pytest.mark.parametrize("name", ["glorot_normal", "kaiming_normal", "lecun_normal"])
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
        ("lecun_uniform", lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="linear")),
        ("lecun_normal", lambda w: torch.nn.init.kaiming_normal_(w, nonlinearity="linear")),
        ("orthogonal", torch.nn.init.orthogonal_),
    ],
)
def test_draws_after_manual_seed_are_torchs(name, twin):
    torch.manual_seed(3)
    ours = getattr(init, name)((5, 4, 3))
    torch.manual_seed(3)
    torch.testing.assert_close(ours, twin(torch.empty(5, 4, 3)), rtol=1e-6, atol=1e-7)


@every_draw
def test_manual_seed_reproduces_and_draws_differ(name):
    torch.manual_seed(1)
    first, second = call(name, (4, 3)), call(name, (4, 3))
    torch.manual_seed(1)
    assert torch.equal(call(name, (4, 3)), first)
    assert not torch.equal(first, second)


@every_draw
def test_a_key_decides_the_draws_and_leaves_torchs_generator_alone(name):
    def draw(key):
        with fl.seeded(key):
            return call(name, (6, 4))

    before = torch.get_rng_state()
    one = draw(fl.Key(1))
    assert torch.equal(draw(fl.Key(1)), one)
    assert not torch.equal(draw(fl.Key(2)), one)
    assert torch.equal(torch.get_rng_state(), before)
    keys = fl.Key(3).split(3)
    together = fl.vmap(draw)(keys)
    for i in range(3):
        alone = draw(fl.Key(3).split(3)[i])
        torch.testing.assert_close(together[i], alone, rtol=1e-5, atol=1e-6)


@every_draw
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_under_jit_it_draws_the_same(name, compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(build, "_can_compile", lambda: False)

    def draw(key):
        with fl.seeded(key):
            return call(name, (6, 4))

    torch.testing.assert_close(fl.jit(draw)(fl.Key(4)), draw(fl.Key(4)), rtol=1e-5, atol=1e-6)


@every_init
def test_a_plain_tensor_of_the_shape_in_the_default_dtype(name):
    shape = [4, 3] if name == "sparse" else [4, 3, 2]
    w = call(name, shape)
    assert type(w) is torch.Tensor
    assert list(w.shape) == shape
    assert w.is_contiguous()
    assert w.dtype == torch.float32
    assert not w.requires_grad


@every_init
@pytest.mark.usefixtures("float64_default")
def test_another_default_dtype_is_followed(name):
    assert call(name, (4, 3)).dtype == torch.float64


@every_init
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_default_dtype_of_16_bits_is_followed(name, dtype):
    torch.set_default_dtype(dtype)
    try:
        assert call(name, (4, 3)).dtype == dtype
    finally:
        torch.set_default_dtype(torch.float32)


@every_init
def test_a_default_device_is_followed(name):
    with torch.device("meta"):
        assert call(name, (4, 3)).is_meta


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


@pytest.mark.parametrize("name", [*SCALED, "orthogonal", "identity"])
@pytest.mark.parametrize("shape", [(3,), ()], ids=str)
def test_a_shape_of_fewer_than_two_axes_is_an_error(name, shape):
    text = (
        rf"{name} got the shape \(.*\): weights have at least two axes, \(out, in, …\); biases start at zero"
    )
    with pytest.raises(ValueError, match=text):
        getattr(init, name)(shape)


NO_SHAPES = {
    "a number": 3, "text": "34", "a float": (3, 4.0), "None": (3, None), "tensors": [torch.ones(2)] * 2,
    "a tensor": torch.ones(3, 4),
}  # fmt: skip


@every_init
@pytest.mark.parametrize("shape", NO_SHAPES.values(), ids=NO_SHAPES)
def test_what_is_no_shape_is_an_error_that_shows_one(name, shape):
    with pytest.raises(TypeError, match=rf"{name} takes a shape, such as \(3, 4\), found "):
        call(name, shape)


@every_init
def test_a_size_below_zero_is_an_error(name):
    with pytest.raises(ValueError, match=rf"{name} got the shape \(3, -4\): a size is at least 0"):
        call(name, (3, -4))


@every_init
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0), (2, 0, 3)], ids=str)
def test_an_empty_weight_is_no_error(name, shape):
    shape = shape[:2] if name == "sparse" else shape
    assert call(name, shape).shape == shape


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


# Orthogonal


@pytest.mark.parametrize(
    "shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3), (6, 2, 2, 2), (2, 6, 3, 3), (1, 4)], ids=str
)
@pytest.mark.parametrize("gain", [1.0, 0.5, -2.0])
@pytest.mark.usefixtures("float64_default")
def test_the_fewer_of_rows_and_columns_are_orthonormal_times_the_gain(shape, gain):
    w = init.orthogonal(shape, gain=gain)
    assert w.shape == shape
    matrix = w.reshape(shape[0], -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=0, atol=1e-12)


@pytest.mark.usefixtures("float64_default")
def test_orthogonal_matrices_are_uniform():
    with fl.seeded(fl.Key(0)):
        drawn = torch.stack([init.orthogonal((3, 3)) for _ in range(4000)])
    # Of a uniform one, entries have mean 0 and variance 1/3, and the determinant is 1 or -1 alike.
    assert drawn.mean(0).abs().max() < 5 / (3 * 4000) ** 0.5
    assert (drawn.square().mean(0) - 1 / 3).abs().max() < 5 * (4 / 45 / 4000) ** 0.5
    assert abs(torch.linalg.det(drawn).mean()) < 5 / 4000**0.5


# Truncated normal

NORMAL = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)


@pytest.mark.parametrize(
    ("mean", "std", "low", "high"),
    [(0, 1, -2, 2), (0, 0.02, -0.04, 0.04), (1, 2, -2, 2), (0, 1, -100, 100), (3, 1, -2, 2), (0, 1, 2, 4),
     (0, 1, -9, -5), (0, 1, -math.inf, math.inf), (0, 1, 0, math.inf), (-50, 10, 0, 1)],
)  # fmt: skip
def test_truncated_draws_have_the_moments_of_the_cut_normal(mean, std, low, high):
    n = 200_000
    x = init.truncated_normal((n,), mean=mean, std=std, low=low, high=high).double()
    assert x.isfinite().all()
    assert low <= x.min().item()
    assert x.max().item() <= high
    a, b = (torch.tensor((v - mean) / std, dtype=torch.float64) for v in (low, high))
    if a > 0:
        a, b, sign = -b, -a, -1
    else:
        sign = 1

    def density(v):
        return NORMAL.log_prob(v).exp()

    def moment(v):
        return torch.where(v.isinf(), 0, v * density(v))

    mass = torch.special.ndtr(b) - torch.special.ndtr(a)
    expected = (density(a) - density(b)) / mass
    variance = 1 + (moment(a) - moment(b)) / mass - expected**2
    z = sign * (x - mean) / std
    assert abs(z.mean() - expected) < 6 * (variance / n) ** 0.5 + 1e-5
    assert abs(z.var() / variance - 1) < 0.03


def test_truncated_draws_are_those_of_torch_in_distribution():
    ours = init.truncated_normal((50_000,), std=0.7, low=-0.5, high=1.5)
    theirs = torch.nn.init.trunc_normal_(torch.empty(50_000), std=0.7, a=-0.5, b=1.5)
    at = torch.linspace(-0.5, 1.5, 50)
    shares = [(x[:, None] <= at).double().mean(0) for x in (ours, theirs)]
    assert (shares[0] - shares[1]).abs().max() < 1.95 * (2 / 50_000) ** 0.5  # Kolmogorov and Smirnov


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"std": 0}, "std=0; write a number above 0"),
        ({"std": math.nan}, "std=nan; write a number above 0"),
        ({"low": math.nan}, "low=nan is not below high=2"),
        ({"low": 2, "high": 1}, "low=2 is not below high=1"),
        ({"low": 50, "high": 60}, "from 50 to 60 there is nothing left of a normal distribution of mean"),
        ({"low": -60, "high": -50}, "from -60 to -50 there is nothing left"),
    ],
)
def test_bounds_that_leave_nothing_are_an_error(settings, text):
    with pytest.raises(ValueError, match=f"truncated_normal: {text}"):
        init.truncated_normal((2, 2), **settings)


# Sparse


@pytest.mark.parametrize("sparsity", [0, 0.1, 0.34, 0.5, 0.99, 1])
@pytest.mark.parametrize("shape", [(10, 7), (3, 20), (1, 4)], ids=str)
def test_the_part_of_every_column_that_is_zero_is_torchs(sparsity, shape):
    ours = init.sparse(shape, sparsity)
    theirs = torch.nn.init.sparse_(torch.empty(shape), sparsity)
    assert torch.equal((ours == 0).sum(0), (theirs == 0).sum(0))


@example(7, 100)
@given(st.integers(0, 100), st.integers(1, 300))
def test_the_part_is_the_decimal_that_is_written(percent, rows):
    zeros = (init.sparse((rows, 1), percent / 100) == 0).sum()
    assert zeros == -(-percent * rows // 100)  # torch has one more for 7 in 100, as 0.07 * 100 > 7


def test_zeros_are_anywhere_and_the_others_normal():
    w = init.sparse((20, 20_000), 0.25, std=0.5)
    share = (w == 0).double().mean(1)
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    values = w[w != 0].double()
    assert abs(values.std() / 0.5 - 1) < 0.01
    assert abs(values.mean()) < 0.01
    assert not torch.equal((w == 0)[:, 0], (w == 0)[:, 1]) or not torch.equal((w == 0)[:, 0], (w == 0)[:, 2])


def test_sparse_refuses_what_it_can_not_make():
    with pytest.raises(ValueError, match=r"sparse got the shape \(2, 3, 4\): it makes matrices, \(out, in\)"):
        init.sparse((2, 3, 4), 0.5)
    with pytest.raises(ValueError, match=r"sparsity=1\.5; write the part that is zero, from 0 to 1"):
        init.sparse((2, 3), 1.5)


# Identity


@pytest.mark.parametrize("shape", [(3, 3), (2, 5), (5, 2)], ids=str)
def test_the_identity_of_matrices_is_torchs(shape):
    assert torch.equal(init.identity(shape), torch.nn.init.eye_(torch.empty(shape)))


@pytest.mark.parametrize(
    ("shape", "groups"), [((4, 4, 3), 1), ((6, 2, 3, 5), 3), ((2, 4, 4, 4), 1), ((4, 1, 3, 3, 3), 4)], ids=str
)
def test_the_identity_of_convolutions_is_torchs(shape, groups):
    ours = init.identity(shape, groups=groups)
    assert torch.equal(ours, torch.nn.init.dirac_(torch.empty(shape), groups))


@pytest.mark.parametrize("kernel", [(3,), (4,), (3, 5), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_of_the_same_size_passes_its_input_on(kernel, groups):
    make = functools.partial(init.identity, gain=2.0, groups=groups)
    x = torch.randn(2, 4, *(6,) * len(kernel))
    y = fl.Conv(kernel, 4, 4, pad=fl.SamePad(), groups=groups, init=make)(x)
    torch.testing.assert_close(y, 2 * x)


def test_shifts_roll_the_axes():
    eye = torch.eye(3, 4)
    assert torch.equal(init.identity((3, 4), shift=1), eye.roll(1, 0))
    assert torch.equal(init.identity((3, 4), shift=(0, 2), gain=3), 3 * eye.roll(2, 1))
    assert torch.equal(init.identity((3, 3, 3), shift=(0, 0, -1))[:, :, 0], torch.eye(3))


def test_identity_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="groups=3 does not divide the 4 outputs"):
        init.identity((4, 1, 3), groups=3)
    with pytest.raises(ValueError, match=r"3 shifts were given for the 2 axes of \(4, 4\)"):
        init.identity((4, 4), shift=(1, 1, 1))
