"""LayerNorm, RMSNorm, GroupNorm and InstanceNorm, and what holds of every norm."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from norm_steps import doubles, exact, trained
from torch import nn

import fluxlike as fl


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


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


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (fl.BatchNorm(2), (0, 2)),
        (fl.BatchNorm(2, momentum=None), (0, 2, 3)),
        (fl.InstanceNorm(2, track_stats=True), (0, 2, 3)),
    ],
    ids=["BatchNorm", "BatchNorm of all batches", "InstanceNorm"],
)
@pytest.mark.parametrize("inside", [False, True], ids=["eager", "inside torch.func"])
def test_an_empty_batch_moves_no_statistics(norm, shape, inside):
    def moved(x):
        new = trained(norm, x)[1]
        return x.sum(), tuple(t for t in fl.fleaves(new) if t.is_floating_point())

    x = torch.zeros(shape)
    after = torch.func.grad(moved, has_aux=True)(x)[1] if inside else moved(x)[1]
    before = [t for t in fl.fleaves(norm) if t.is_floating_point()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


INSTANCES = {
    "1-d": ((4, 3, 5), nn.InstanceNorm1d),
    "2-d": ((4, 3, 5, 2), nn.InstanceNorm2d),
    "3-d": ((2, 3, 2, 3, 2), nn.InstanceNorm3d),
    "one observation": ((1, 3, 4), nn.InstanceNorm1d),
}


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize(("shape", "twin"), INSTANCES.values(), ids=INSTANCES)
def test_instancenorm_over_any_axes_equals_torchs_over_several_steps(shape, twin, affine, track):
    norm = fl.f64(fl.InstanceNorm(3, momentum=0.3, affine=affine, track_stats=track))
    other = twin(3, momentum=0.3, affine=affine, track_running_stats=track).double()
    for _ in range(3):
        x = doubles(*shape)
        y, norm = trained(norm, x)
        exact(y, other(x).detach())
        if track:
            exact(norm.running_mean, other.running_mean)
            exact(norm.running_var, other.running_var)
    exact(norm(x), other.eval()(x).detach())


@pytest.mark.parametrize(
    "norm",
    [
        fl.InstanceNorm(3, affine=True, track_stats=True),
        fl.BatchNorm(3),
        fl.BatchNorm(3, momentum=None),
        fl.BatchNorm(3, track_stats=False),
        fl.GroupNorm(3, 1),
        fl.RMSNorm(5),
    ],
    ids=repr,
)
def test_a_norm_inside_torch_func_equals_the_one_outside(norm):
    norm = fl.f64(norm)
    x, weights = doubles(2, 4, 3, 5)

    def loss(x):
        y, moved = trained(norm, x)
        return (y * weights).sum(), (y, *(t for t in fl.fleaves(moved) if t.is_floating_point()))

    x2 = x.clone().requires_grad_()
    value, outside = loss(x2)
    value.backward()
    grad, inside = torch.func.grad(loss, has_aux=True)(x)
    exact(grad, x2.grad)
    for a, b in zip(inside, outside, strict=True):
        exact(a, b.detach())


def test_instancenorm_learns_and_keeps_nothing_unless_told():
    assert fl.fleaves(fl.InstanceNorm(3)) == []
    assert len(fl.trainables(fl.InstanceNorm(3, affine=True))) == 2
    assert len(fl.fleaves(fl.InstanceNorm(3, track_stats=True))) == 2
    assert fl.trainables(fl.InstanceNorm(3, track_stats=True)) == []


def test_instancenorm_of_a_single_value_is_an_error():
    with pytest.raises(ValueError, match="more than 1 spatial element"):
        fl.InstanceNorm(3)(torch.zeros(2, 3, 1))


def test_groupnorm_of_a_single_value_is_an_error():
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        fl.GroupNorm(3, 3)(torch.ones(1, 3))


def test_a_pinned_instancenorm_keeps_its_statistics_inside_gradient():
    norm = fl.testmode(fl.InstanceNorm(2, affine=True, track_stats=True))
    grads = fl.gradient(lambda m: m(torch.randn(3, 2, 4)).sum(), norm)
    assert grads.running_mean is None


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 3), (2, 6, 3, 2), (2, 6, 2, 3, 2)], ids=str)
def test_groupnorm_over_any_axes_equals_torchs(shape, groups):
    norm, x = fl.f64(fl.GroupNorm(6, groups)), doubles(*shape)
    exact(norm(x), nn.GroupNorm(groups, 6).double()(x).detach())


def test_groups_of_one_channel_are_instances_and_one_group_is_the_whole_example():
    x = doubles(3, 4, 5)
    exact(fl.f64(fl.GroupNorm(4, 4))(x), fl.InstanceNorm(4)(x))
    exact(fl.f64(fl.GroupNorm(4, 1))(x), fl.LayerNorm((4, 5), affine=False)(x))


@pytest.mark.parametrize(
    ("channels", "groups", "text"),
    [
        (
            8,
            32,
            r"GroupNorm\(8, 32\): 32 groups do not divide 8 channels; the channels come first: \(32, 8\)",
        ),
        (8, 3, r"GroupNorm\(8, 3\): 3 groups do not divide 8 channels$"),
        (8, 0, r"GroupNorm\(8, 0\): 0 groups do not divide 8 channels$"),
        (8, -2, r"GroupNorm: sizes are not negative, found -2 among"),
    ],
)
def test_groups_that_do_not_divide_the_channels_are_an_error(channels, groups, text):
    with pytest.raises(ValueError, match=text):
        fl.GroupNorm(channels, groups)


def test_groupnorm_trains_one_example_at_a_time():
    norm, x = fl.f64(fl.GroupNorm(4, 2)), doubles(3, 4)
    grads = fl.per_example_gradient(lambda m, x: m(x).square().sum(), norm, x)
    for i in range(3):
        one = fl.gradient(lambda m, x: m(x).square().sum(), norm, x[i : i + 1])
        exact(grads.weight[i], one.weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [4, (3, 4), [2, 3, 4]], ids=str)
def test_rmsnorm_over_the_last_axes_equals_torchs_with_its_own_eps(shape, dtype):
    x = (torch.randn(2, 2, 3, 4) * 1e-4).to(dtype)
    y = fl.RMSNorm(shape, affine=False)(x)
    assert torch.equal(y, nn.RMSNorm(shape, elementwise_affine=False)(x))


def test_rmsnorm_has_a_mean_square_of_one():
    y = fl.f64(fl.RMSNorm(4))(doubles(3, 4))
    exact(y.square().mean(-1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("make", [fl.LayerNorm, fl.RMSNorm])
def test_a_norm_over_no_axes_is_an_error(make):
    with pytest.raises(ValueError, match=r"normalized_shape=\(\): write the sizes of the last axes"):
        make(())


HALF = {
    "BatchNorm": lambda affine: fl.BatchNorm(4, affine=affine),
    "LayerNorm": lambda affine: fl.LayerNorm(64, affine=affine),
    "GroupNorm": lambda affine: fl.GroupNorm(4, 2, affine=affine),
    "InstanceNorm": lambda affine: fl.InstanceNorm(4, affine=affine),
    "InstanceNorm with statistics": lambda affine: fl.InstanceNorm(4, affine=affine, track_stats=True),
    "BatchNorm without statistics": lambda affine: fl.BatchNorm(4, affine=affine, track_stats=False),
    "BatchNorm of all batches": lambda affine: fl.BatchNorm(4, affine=affine, momentum=None),
    "RMSNorm": lambda affine: fl.RMSNorm(64, affine=affine),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("make", HALF.values(), ids=HALF)
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_half_precision_input_is_normalised_in_float32_and_rounded_once(make, dtype, affine, mode):
    norm, x = make(affine), (100 + torch.randn(3, 4, 64)).to(dtype)
    with fl.mode(mode):
        y, wanted = norm(x), fl.f64(norm)(x.double())
    rounding = torch.finfo(dtype).eps / 2 * wanted.abs()
    arithmetic = 8 * torch.finfo(torch.float32).eps * 100
    assert y.dtype == dtype
    assert ((y.double() - wanted).abs() <= rounding + arithmetic).all()


@pytest.mark.parametrize("make", [fl.GroupNorm, fl.InstanceNorm, fl.RMSNorm])
def test_an_activation_that_cannot_be_called_is_an_error(make):
    arguments = (4, 2) if make is fl.GroupNorm else (4,)
    with pytest.raises(TypeError, match=rf"{make.__name__} got the activation 'relu'.*write fl.relu"):
        make(*arguments, "relu")


LAWS = [fl.GroupNorm(4, 2, eps=0.0), fl.InstanceNorm(4, eps=0.0), fl.LayerNorm((4, 6), eps=0.0)]


@given(
    norm=st.sampled_from(LAWS),
    scale=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_norms_of_one_example_forget_its_scale_and_shift(norm, scale, shift, seed):
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    norm = fl.f64(norm)
    torch.testing.assert_close(norm(scale * x + shift), norm(x), rtol=1e-8, atol=1e-8)


@given(scale=st.floats(0.01, 100), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_rmsnorm_forgets_the_scale_alone(scale, seed):
    x = torch.randn(2, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    norm = fl.f64(fl.RMSNorm(6, eps=0.0))
    exact(norm(scale * x), norm(x))
    assert not torch.allclose(norm(x + 1), norm(x))
