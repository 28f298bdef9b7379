from __future__ import annotations

import pytest
import torch
from torch import nn

import fluxlike as fl


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def trained(norm, x):
    """What the layer returns in training, and the layer after it."""
    with fl.mode("train"):
        y, updates = fl.withupdates(lambda m: m(x), norm)
    return y, fl.apply_updates(norm, updates)


@pytest.fixture
def rows():
    """Channels 1 3 5 and 2 4 6, of three observations."""
    return torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], dtype=torch.float64)


def test_batchnorm_trains_to_the_published_numbers(rows):
    y, norm = trained(fl.f64(fl.BatchNorm(2)), rows)
    torch.testing.assert_close(
        y.T, torch.tensor([[-1.22474, 0.0, 1.22474]] * 2, dtype=torch.float64), rtol=0, atol=5e-6
    )
    exact(norm.running_mean, torch.tensor([0.3, 0.4], dtype=torch.float64))
    exact(norm.running_var, torch.tensor([1.3, 1.3], dtype=torch.float64))


def test_batchnorm_in_test_mode_uses_and_keeps_the_running_statistics(rows):
    norm = fl.f64(fl.BatchNorm(2))
    y, updates = fl.withupdates(lambda m: m(rows), fl.testmode(norm))
    exact(y, rows / (1 + 1e-5) ** 0.5)
    after = fl.apply_updates(norm, fl.automode(updates))
    assert torch.equal(after.running_mean, norm.running_mean)
    assert torch.equal(after.running_var, norm.running_var)


def test_batchnorm_called_plainly_tests_and_inside_gradient_trains(rows):
    norm = fl.f64(fl.BatchNorm(2))
    exact(norm(rows), rows / (1 + 1e-5) ** 0.5)
    (_, y), grads = fl.withgradient(lambda m: ((y := m(rows)).sum(), y), norm)
    exact(y.mean(0), torch.zeros(2, dtype=torch.float64))
    assert isinstance(grads.running_mean, fl.Assigned)
    assert torch.equal(norm.running_mean, torch.zeros(2, dtype=torch.float64))


def test_two_lines_move_the_running_statistics(rows):
    norm = fl.f64(fl.BatchNorm(2))
    state = fl.setup(fl.Descent(0.1), norm)
    grads = fl.gradient(lambda m: m(rows).square().sum(), norm)
    new, state = fl.update(state, norm, grads)
    exact(new.running_mean, torch.tensor([0.3, 0.4], dtype=torch.float64))
    exact(new.running_var, torch.tensor([1.3, 1.3], dtype=torch.float64))


def test_a_batchnorm_called_twice_moves_its_statistics_twice(rows):
    norm = fl.f64(fl.BatchNorm(2))
    _, updates = fl.withupdates(lambda m: (m(rows), m(rows + 1)), norm)
    twin = nn.BatchNorm1d(2).double()
    twin(rows)
    twin(rows + 1)
    new = fl.apply_updates(norm, updates)
    exact(new.running_mean, twin.running_mean)
    exact(new.running_var, twin.running_var)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.7, 1.0])
@pytest.mark.parametrize(
    ("shape", "twin"),
    [
        ((6, 3), nn.BatchNorm1d),
        ((4, 3, 5), nn.BatchNorm1d),
        ((4, 3, 5, 2), nn.BatchNorm2d),
        ((2, 3, 2, 3, 2), nn.BatchNorm3d),
        ((1, 3, 4), nn.BatchNorm1d),
    ],
    ids=["features", "1-d", "2-d", "3-d", "one observation"],
)
def test_batchnorm_over_any_axes_equals_torchs_over_several_steps(shape, twin, momentum):
    torch.manual_seed(0)
    norm, other = fl.f64(fl.BatchNorm(3, momentum=momentum)), twin(3, momentum=momentum).double()
    for _ in range(3):
        x = torch.randn(shape, dtype=torch.float64)
        y, norm = trained(norm, x)
        exact(y, other(x).detach())
        exact(norm.running_mean, other.running_mean)
        exact(norm.running_var, other.running_var)
    exact(norm(x), other.eval()(x).detach())


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5), (4, 3, 2, 2)], ids=str)
def test_batchnorm_inside_torch_func_equals_the_one_outside(shape):
    torch.manual_seed(0)
    norm = fl.f64(fl.BatchNorm(3))
    x, weights = torch.randn(2, *shape, dtype=torch.float64)

    def loss(x):
        y, updates = fl.withupdates(lambda m: m(x), norm)
        moved = fl.apply_updates(norm, updates)
        return (y * weights).sum(), (y, moved.running_mean, moved.running_var)

    x2 = x.clone().requires_grad_()
    value, outside = loss(x2)
    value.backward()
    grad, inside = torch.func.grad(loss, has_aux=True)(x)
    exact(grad, x2.grad)
    for a, b in zip(inside, outside, strict=True):
        exact(a, b.detach())


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 1), (1, 2, 1, 1)], ids=str)
def test_a_single_value_a_channel_cannot_train(shape):
    with fl.mode("train"), pytest.raises(ValueError, match="more than 1 value per channel"):
        fl.BatchNorm(2)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 1)], ids=str)
def test_a_single_value_a_channel_cannot_train_inside_torch_func_either(shape):
    with fl.mode("train"), pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.func.grad(lambda x: fl.BatchNorm(2)(x).sum())(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", [fl.BatchNorm, fl.LayerNorm])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_half_precision_input_is_normalised_in_float32_and_rounded_once(make, dtype, affine, mode):
    torch.manual_seed(0)
    norm, x = make(4, affine=affine), (100 + torch.randn(64, 4)).to(dtype)
    with fl.mode(mode):
        y, wanted = norm(x), fl.f64(norm)(x.double())
    rounding = torch.finfo(dtype).eps / 2 * wanted.abs()
    arithmetic = 8 * torch.finfo(torch.float32).eps * 100
    assert y.dtype == dtype
    assert ((y.double() - wanted).abs() <= rounding + arithmetic).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_input_moves_float32_statistics(dtype):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).to(dtype)
    _, norm = trained(fl.BatchNorm(2), x)
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(norm.running_var, torch.tensor([1.3, 1.3]))


@pytest.mark.parametrize("make", [fl.BatchNorm, fl.LayerNorm])
def test_without_affine_there_is_nothing_to_train(make):
    norm = make(3, affine=False)
    assert norm.weight is None
    assert norm.bias is None
    assert fl.trainables(norm) == []


def test_weight_starts_at_one_and_bias_at_zero():
    for norm in (fl.BatchNorm(3), fl.LayerNorm(3)):
        assert torch.equal(norm.weight, torch.ones(3))
        assert torch.equal(norm.bias, torch.zeros(3))


def test_running_statistics_are_buffers():
    norm = fl.BatchNorm(2)
    assert [id(p) for p in fl.trainables(norm)] == [id(norm.weight), id(norm.bias)]


def test_a_model_that_is_only_closed_over_keeps_its_statistics(rows):
    norm, other = fl.f64(fl.BatchNorm(2)), fl.f64(fl.Dense(2, 2))
    fl.gradient(lambda m: norm(m(rows)).sum(), other)
    assert torch.equal(norm.running_mean, torch.zeros(2, dtype=torch.float64))


def test_a_pinned_batchnorm_does_not_train_inside_gradient(rows):
    norm = fl.testmode(fl.f64(fl.BatchNorm(2)))
    grads = fl.gradient(lambda m: m(rows).sum(), norm)
    assert grads.running_mean is None
    assert grads.running_var is None


def test_layernorm_has_mean_zero_and_variance_one():
    y = fl.LayerNorm(3)(torch.tensor([[1.0, 2.0, 3.0]]))
    torch.testing.assert_close(y, torch.tensor([[-1.22474, 0.0, 1.22474]]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [4, (4,), (3, 4), [2, 3, 4]], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_layernorm_over_the_last_axes_equals_torchs(shape, affine):
    torch.manual_seed(0)
    x = torch.randn(2, 2, 3, 4, dtype=torch.float64)
    exact(fl.f64(fl.LayerNorm(shape, affine=affine))(x), nn.LayerNorm(shape).double()(x).detach())


def test_layernorm_does_not_know_modes():
    x = torch.randn(3, 4)
    with fl.mode("train"):
        y = fl.LayerNorm(4)(x)
    assert torch.equal(y, fl.LayerNorm(4)(x))


def test_dropout_in_test_mode_returns_its_input():
    x = torch.ones(5)
    assert fl.Dropout(0.9)(x) is x


@pytest.mark.parametrize("p", [0, 0.0, 0.2, 0.5, 1, 1.0])
def test_dropout_after_manual_seed_equals_torchs(p):
    x = torch.randn(50, 4)
    torch.manual_seed(3)
    wanted = nn.Dropout(p)(x)
    torch.manual_seed(3)
    with fl.mode("train"):
        assert torch.equal(fl.Dropout(p)(x), wanted)


def test_dropout_is_reproducible_after_manual_seed_and_differs_without():
    x, drop = torch.ones(1000), fl.trainmode(fl.Dropout(0.5))
    torch.manual_seed(1)
    first, second = drop(x), drop(x)
    torch.manual_seed(1)
    assert torch.equal(drop(x), first)
    assert not torch.equal(first, second)


def test_dropout_zeroes_a_share_of_p_and_scales_the_rest():
    torch.manual_seed(0)
    y = fl.trainmode(fl.Dropout(0.2))(torch.ones(100_000))
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert abs((y == 0).double().mean().item() - 0.2) < 4 * (0.2 * 0.8 / 100_000) ** 0.5


def test_dropout_trains_inside_the_gradient_of_a_model():
    model = fl.Chain(fl.Dense(1, 1000, bias=False), fl.Dropout(0.5))
    grads = fl.gradient(lambda m: m(torch.ones(1, 1)).sum(), model)
    assert set(grads.layers[0].weight.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_dropout_of_no_probability_is_an_error(p):
    with pytest.raises(ValueError, match=r"Dropout\(p=.*\): write a probability, from 0 to 1"):
        fl.Dropout(p)
