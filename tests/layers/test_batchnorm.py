"""BatchNorm: its statistics, its modes and its options."""

from __future__ import annotations

import pytest
import torch
from norm_steps import doubles, exact, trained
from torch import nn

import fluxlike as fl


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 1), (1, 2, 1, 1)], ids=str)
def test_a_single_value_a_channel_cannot_train(shape):
    with fl.mode("train"), pytest.raises(ValueError, match="more than 1 value per channel"):
        fl.BatchNorm(2)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 2), (1, 2, 1)], ids=str)
def test_a_single_value_a_channel_cannot_train_inside_torch_func_either(shape):
    with fl.mode("train"), pytest.raises(ValueError, match="more than 1 value per channel"):
        torch.func.grad(lambda x: fl.BatchNorm(2)(x).sum())(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_input_moves_float32_statistics(dtype):
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).to(dtype)
    _, norm = trained(fl.BatchNorm(2), x)
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, torch.tensor([0.3, 0.4]))
    torch.testing.assert_close(norm.running_var, torch.tensor([1.3, 1.3]))


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


def test_batchnorm_without_momentum_keeps_the_mean_over_all_batches():
    norm, twin = fl.f64(fl.BatchNorm(3, momentum=None)), nn.BatchNorm1d(3, momentum=None).double()
    for n in range(1, 5):
        x = doubles(4, 3, 2)
        y, norm = trained(norm, x)
        exact(y, twin(x).detach())
        exact(norm.running_mean, twin.running_mean)
        exact(norm.running_var, twin.running_var)
        assert norm.num_batches_tracked.item() == n
    exact(norm(x), twin.eval()(x).detach())


def test_batchnorm_without_momentum_moves_in_two_lines():
    norm, x = fl.f64(fl.BatchNorm(2, momentum=None)), doubles(4, 2)
    grads = fl.gradient(lambda m: m(x).square().sum(), norm)
    new, _ = fl.update(fl.setup(fl.Descent(0.1), norm), norm, grads)
    exact(new.running_mean, x.mean(0))
    assert new.num_batches_tracked.item() == 1


def test_batchnorm_with_momentum_counts_no_batches():
    assert fl.BatchNorm(2).num_batches_tracked is None
    assert fl.BatchNorm(2, momentum=None, track_stats=False).num_batches_tracked is None


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("affine", [True, False])
def test_batchnorm_without_statistics_normalises_by_the_batch_in_both_modes(mode, affine):
    norm = fl.f64(fl.BatchNorm(3, affine=affine, track_stats=False))
    twin = nn.BatchNorm1d(3, affine=affine, track_running_stats=False).double().train(mode == "train")
    x = doubles(5, 3)
    with fl.mode(mode):
        y, updates = fl.withupdates(lambda m: m(x), norm)
    exact(y, twin(x).detach())
    assert not any(isinstance(leaf, fl.Assigned) for leaf in fl.fleaves(updates, leaves="all"))
    assert norm.running_mean is norm.running_var is None


def test_the_options_of_batchnorm_are_printed():
    norm = fl.BatchNorm(3, momentum=None, track_stats=False, affine=False)
    assert repr(norm) == "BatchNorm(3, momentum=None, affine=False, track_stats=False)"


@pytest.mark.parametrize("track", [True, False])
def test_batchnorm_of_one_example_alone_is_an_error_that_names_groupnorm(track):
    norm = fl.BatchNorm(3, track_stats=track)
    with pytest.raises(ValueError, match="use GroupNorm, which looks at each example alone"):
        fl.per_example_gradient(lambda m, x: m(x).sum(), norm, torch.ones(4, 3))
