from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fluxlike as fl

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SIZES = {1: (9,), 2: (9, 8), 3: (7, 6, 5)}
POOLS = {
    fl.MaxPool: {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d},
    fl.MeanPool: {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d},
}
ADAPTIVE = {
    fl.AdaptiveMaxPool: {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d},
    fl.AdaptiveMeanPool: {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d},
}
axes = pytest.mark.parametrize("n", [1, 2, 3])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "side"),
    [({"stride": 2}, 48), ({"stride": 2, "dilation": 4}, 42), ({"stride": 2, "pad": 2}, 50)],
)
def test_a_five_by_five_kernel_on_a_hundred_gives_the_published_sizes(options, side):
    y = fl.Conv((5, 5), 1, 1, **options)(torch.zeros(1, 1, 100, 100))
    assert y.shape == (1, 1, side, side)


@axes
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "settings",
    [{}, {"stride": 2}, {"pad": 2}, {"dilation": 2}, {"stride": 2, "pad": 1, "dilation": 2}],
    ids=str,
)
def test_conv_equals_torchs(n, groups, bias, settings):
    conv = fl.f64(fl.Conv((3, 2, 2)[:n], 4, 6, groups=groups, bias=bias, **settings))
    if bias:
        conv = fl.at(conv, ".bias").set(torch.randn(6, dtype=torch.float64))
    torchs = {"padding" if k == "pad" else k: v for k, v in settings.items()}
    twin = CONVOLUTIONS[n](4, 6, (3, 2, 2)[:n], groups=groups, bias=bias, **torchs).double()
    twin.load_state_dict({k: v for k, v in vars(conv).items() if isinstance(v, torch.Tensor)})
    x = torch.randn(2, 4, *SIZES[n], dtype=torch.float64)
    exact(conv(x), twin(x).detach())


@pytest.mark.parametrize("name", ["stride", "pad", "dilation"])
def test_a_setting_an_axis_is_that_axis(name):
    conv = fl.f64(fl.Conv((3, 3), 1, 1, **{name: (1, 2)}))
    torchs = {"padding" if name == "pad" else name: (1, 2)}
    x = torch.randn(1, 1, 9, 9, dtype=torch.float64)
    exact(conv(x), F.conv2d(x, conv.weight, conv.bias, **torchs))


def test_the_kernel_is_not_flipped():
    conv = fl.Conv((2,), 1, 1, init=lambda shape: torch.tensor([[[1.0, 10.0]]]))
    assert conv(torch.tensor([[[1.0, 2.0, 3.0]]])).tolist() == [[[21.0, 32.0]]]


def test_weight_and_bias_have_torchs_shapes_and_bias_starts_at_zero():
    conv = fl.Conv((3, 5), 4, 6, groups=2)
    assert conv.weight.shape == (6, 2, 3, 5)
    assert torch.equal(conv.bias, torch.zeros(6))


def test_activation_comes_after_the_bias():
    conv = fl.at(fl.Conv((1,), 1, 1, fl.relu), ".bias").set(torch.tensor([-100.0]))
    assert conv(torch.ones(1, 1, 3)).tolist() == [[[0.0, 0.0, 0.0]]]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: fl.Conv(3, 1, 1), r"kernel_size=3: write one number an axis"),
        (lambda: fl.Conv((), 1, 1), r"kernel_size=\(\): write one number an axis"),
        (lambda: fl.Conv((1, 1, 1, 1), 1, 1), r"kernel_size=\(1, 1, 1, 1\): write one number an axis"),
        (lambda: fl.Conv((3,), 3, 4, groups=2), r"groups=2 does not divide the channels 3 and 4"),
        (lambda: fl.Conv((3,), 4, 3, groups=2), r"groups=2 does not divide the channels 4 and 3"),
        (lambda: fl.Conv((3, 3), 1, 1, stride=(1, 1, 1)), r"stride=\(1, 1, 1\): write one number, or 2"),
        (lambda: fl.Conv((3, 3), 1, 1, pad=(1,)), r"pad=\(1,\): write one number, or 2"),
        (lambda: fl.Conv((3,), 1, 1, dilation=(1, 2)), r"dilation=\(1, 2\): write one number, or 1"),
        (lambda: fl.MaxPool(2), r"window=2: write one number an axis, such as \(2, 2\)"),
        (lambda: fl.MeanPool(()), r"window=\(\): write one number an axis"),
        (lambda: fl.MeanPool((2, 2), stride=(1, 1, 1)), r"stride=\(1, 1, 1\): write one number, or 2"),
        (lambda: fl.MaxPool((2, 2), pad=(1,)), r"pad=\(1,\): write one number, or 2"),
        (lambda: fl.AdaptiveMaxPool(2), r"out_size=2: write one number an axis, such as \(1, 1\)"),
        (lambda: fl.AdaptiveMeanPool((1,) * 4), r"out_size=\(1, 1, 1, 1\): write one number an axis"),
    ],
)
def test_a_wrong_number_of_numbers_is_an_error_that_shows_it(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_an_input_smaller_than_the_kernel_is_an_error_with_both_sizes():
    with pytest.raises(fl.LayerError, match=r"^\.layers\[0\].*\(2 x 2\).*\(3 x 3\)"):
        fl.Chain(fl.Conv((3, 3), 1, 1))(torch.zeros(1, 1, 2, 2))


@axes
@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("settings", [{}, {"stride": 1}, {"pad": 1}, {"stride": 3, "pad": 1}], ids=str)
def test_a_window_pool_equals_torchs(n, make, settings):
    window = (2, 3, 2)[:n]
    x = torch.randn(2, 3, *SIZES[n], dtype=torch.float64)
    wanted = POOLS[make][n](x, window, settings.get("stride", window), settings.get("pad", 0))
    exact(make(window, **settings)(x), wanted)


@axes
@pytest.mark.parametrize("make", ADAPTIVE)
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 3, 4)], ids=str)
def test_an_adaptive_pool_equals_torchs(n, make, size):
    x = torch.randn(2, 3, *SIZES[n], dtype=torch.float64)
    exact(make(size[:n])(x), ADAPTIVE[make][n](x, size[:n]))


@axes
def test_global_pools_leave_one_number_a_channel(n):
    x = torch.randn(2, 3, *SIZES[n], dtype=torch.float64)
    exact(fl.GlobalMaxPool()(x), x.flatten(2).max(2).values)
    exact(fl.GlobalMeanPool()(x), x.flatten(2).mean(2))


def test_padding_counts_as_zeros_in_a_mean_and_is_never_a_maximum():
    x = torch.full((1, 1, 2), -4.0)
    assert fl.MeanPool((2,), pad=1)(x).tolist() == [[[-2.0, -2.0]]]
    assert fl.MaxPool((2,), pad=1)(x).tolist() == [[[-4.0, -4.0]]]


def test_pools_have_nothing_to_train():
    for pool in (fl.MaxPool((2,)), fl.MeanPool((2,)), fl.AdaptiveMaxPool((1,)), fl.GlobalMeanPool()):
        assert fl.trainables(pool) == []
        assert fl.fleaves(pool, leaves="all") == []


def test_a_small_network_of_convolutions_learns():
    x = torch.randn(16, 1, 8, 8)
    y = (x.mean((1, 2, 3)) > 0).long()
    model = fl.Chain(
        fl.Conv((3, 3), 1, 4, fl.relu, pad=1), fl.MaxPool((2, 2)), fl.flatten, fl.Dense(4 * 4 * 4, 2)
    )

    def loss(m):
        return fl.losses.logitcrossentropy(m(x), y)

    before, state = loss(model), fl.setup(fl.Adam(0.01), model)
    for _ in range(10):
        model, state = fl.update(state, model, fl.gradient(loss, model))
    assert loss(model) < 0.7 * before
