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
    [
        ({"stride": 2}, 48),
        ({"stride": 2, "dilation": 4}, 42),
        ({"stride": 2, "pad": 2}, 50),
        ({"stride": 2, "pad": fl.SamePad()}, 50),
    ],
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


@axes
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("settings", [{"pad": 1}, {"pad": 2, "stride": 2}, {"pad": (2, 1, 0)}], ids=str)
def test_a_padding_mode_equals_torchs(n, mode, settings):
    settings = {k: v[:n] if isinstance(v, tuple) else v for k, v in settings.items()}
    conv = fl.f64(fl.Conv((3, 2, 2)[:n], 2, 3, padding_mode=mode, **settings))
    torchs = {"padding" if k == "pad" else k: v for k, v in settings.items()}
    twin = CONVOLUTIONS[n](2, 3, (3, 2, 2)[:n], padding_mode=mode, **torchs).double()
    twin.load_state_dict({k: v for k, v in vars(conv).items() if isinstance(v, torch.Tensor)})
    x = torch.randn(2, 2, *SIZES[n], dtype=torch.float64)
    exact(conv(x), twin(x).detach())


def test_crosscor_is_the_second_name_of_conv():
    assert fl.CrossCor is fl.Conv


@axes
def test_a_depthwise_convolution_convolves_each_channel_by_itself(n):
    conv = fl.f64(fl.DepthwiseConv((3,) * n, 2, 4, pad=1, bias=False))
    assert isinstance(conv, fl.Conv)
    x = torch.randn(2, 2, *SIZES[n], dtype=torch.float64)
    alone = [
        getattr(F, f"conv{n}d")(x[:, i : i + 1], conv.weight[2 * i : 2 * i + 2], padding=1) for i in (0, 1)
    ]
    exact(conv(x), torch.cat(alone, 1))


def test_a_stack_of_convolutions_prints_what_it_holds_and_says_how_to_call_it():
    stacked = fl.stack([fl.Conv((3,), 2, 4) for _ in range(5)])
    assert "weight=float32[5, 4, 2, 3]" in repr(stacked)
    text = r"weight of 3 axes, found \(5, 4, 2, 3\); layers of fluxlike.stack are called under fluxlike.vmap"
    with pytest.raises(ValueError, match=text):
        stacked(torch.zeros(1, 2, 9))
    assert fl.vmap(lambda conv: conv(torch.zeros(1, 2, 9)))(stacked).shape == (5, 1, 4, 7)


def test_a_weight_of_other_channels_put_in_its_place_is_what_the_layer_goes_by():
    grey = fl.at(fl.Conv((3, 3), 3, 4), ".weight").apply(lambda w: w.sum(1, keepdim=True))
    assert grey(torch.zeros(1, 1, 5, 5)).shape == (1, 4, 3, 3)
    assert repr(grey) == "Conv((3, 3), 1, 4)  # 40 parameters"


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
        (lambda: fl.Conv((3, 3), 1, 1, stride=0), r"stride=0: write numbers of at least 1"),
        (lambda: fl.Conv((3, 3), 1, 1, stride=(1, -1)), r"stride=\(1, -1\): write numbers of at least 1"),
        (lambda: fl.Conv((3, 3), 1, 1, dilation=0), r"dilation=0: write numbers of at least 1"),
        (lambda: fl.Conv((3, 0), 1, 1), r"kernel_size=\(3, 0\): write numbers of at least 1"),
        (lambda: fl.Conv((3, 1.5), 1, 1), r"kernel_size=\(3, 1.5\): write whole numbers"),
        (lambda: fl.Conv("33", 1, 1), r"kernel_size='33': write one number an axis"),
        (lambda: fl.Conv((3,), 0, 1), r"in_channels=0: write a number of at least 1"),
        (lambda: fl.Conv((3,), 1, 1, groups=0), r"groups=0: write a number of at least 1"),
        (
            lambda: fl.Conv((3,), 1, 1, padding_mode="mirror"),
            r"padding_mode='mirror': write one of zeros, refl",
        ),
        (lambda: fl.DepthwiseConv((3,), 4, 6), r"DepthwiseConv from 4 to 6 .*write a multiple of 4"),
        (lambda: fl.DepthwiseConv((3,), 0, 6), r"in_channels=0: write a number of at least 1"),
        (lambda: fl.MaxPool((2,), stride=0), r"stride=0: write numbers of at least 1"),
        (lambda: fl.MaxPool((3,), pad=2), r"pad=2: a pool takes pads of at most half the window, \(3,\)"),
        (lambda: fl.MeanPool((3,), pad=(0, 2)), r"pad=\(0, 2\): a pool takes pads of at most half"),
        (
            lambda: fl.MaxPool((2,), pad=fl.SamePad(), ceil_mode=True),
            r"ceil_mode goes with pads that are alike",
        ),
        (lambda: fl.LPPool((2,), 0), r"LPPool\(p=0\): write a positive power"),
        (lambda: fl.AdaptiveMaxPool((0,)), r"out_size=\(0,\): write numbers of at least 1"),
        (lambda: fl.MaxPool((2, 2), pad=(1,)), r"pad=\(1,\): write one number, or 2"),
        (lambda: fl.AdaptiveMaxPool(2), r"out_size=2: write one number an axis, such as \(1, 1\)"),
        (lambda: fl.AdaptiveMeanPool((1,) * 4), r"out_size=\(1, 1, 1, 1\): write one number an axis"),
    ],
)
def test_a_wrong_number_of_numbers_is_an_error_that_shows_it(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_an_input_smaller_than_the_kernel_is_an_error_with_both_sizes():
    with pytest.raises(fl.LayerError, match=r"^\.layers\[0\].*kernel of Conv covers \(3, 3\).*only \(2, 2\)"):
        fl.Chain(fl.Conv((3, 3), 1, 1))(torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("layer", "shape", "text"),
    [
        (fl.Conv((3,), 1, 1, dilation=2), (4,), r"kernel of Conv covers \(5,\), .* only \(4,\)"),
        (fl.Conv((3, 3), 1, 1, pad=((1, 0), (0, 0))), (2, 2), r"Conv covers \(3, 3\), .* only \(3, 2\)"),
        (fl.MaxPool((3,)), (2,), r"window of MaxPool covers \(3,\), .* only \(2,\)"),
        (fl.MaxPool((2,), dilation=3), (3,), r"window of MaxPool covers \(4,\), .* only \(3,\)"),
        (fl.MeanPool((3, 3)), (2, 5), r"window of MeanPool covers \(3, 3\), .* only \(2, 5\)"),
        (fl.LPPool((3, 1, 1)), (2, 5, 5), r"window of LPPool covers \(3, 1, 1\), .* only \(2, 5, 5\)"),
    ],
)
def test_an_input_smaller_than_the_window_is_an_error_on_every_device(layer, shape, text, device):
    with pytest.raises(ValueError, match=text):
        fl.to_device(layer, device)(torch.zeros(1, 1, *shape, device=device))


@pytest.mark.parametrize(
    ("mode", "pad", "bound"),
    [("reflect", 2, "less than"), ("circular", 3, "at most")],
    ids=["reflect", "circular"],
)
def test_a_pad_larger_than_what_there_is_to_reflect_is_an_error_with_both_sizes(mode, pad, bound):
    text = rf"pads by \({pad},\) with padding_mode='{mode}', which takes pads of {bound} .*found \(2,\)"
    with pytest.raises(ValueError, match=text):
        fl.Conv((3,), 1, 1, pad=pad, padding_mode=mode)(torch.zeros(1, 1, 2))


@pytest.mark.parametrize(
    ("shape", "hint"),
    [
        ((1, 8, 8, 3), r"the channels seem to be last: write x.movedim\(-1, 1\)"),
        ((3, 8, 8), r"the batch seems to be missing: write x.unsqueeze\(0\)"),
    ],
    ids=str,
)
def test_an_image_in_another_layout_says_what_to_write(shape, hint):
    with pytest.raises(ValueError, match=rf"Conv takes the shape \(N, 3, H, W\), found .*; {hint}"):
        fl.Conv((3, 3), 3, 1)(torch.zeros(shape))


def test_images_without_a_channel_axis_say_what_to_write():
    with pytest.raises(ValueError, match=r"the channel seems to be missing: write x.unsqueeze\(1\)"):
        fl.Conv((3, 3), 1, 1)(torch.zeros(5, 8, 8))


@axes
@pytest.mark.parametrize("make", POOLS)
@pytest.mark.parametrize("settings", [{}, {"stride": 1}, {"pad": 1}, {"stride": 3, "pad": 1}], ids=str)
def test_a_window_pool_equals_torchs(n, make, settings):
    window = (2, 3, 2)[:n]
    x = torch.randn(2, 3, *SIZES[n], dtype=torch.float64)
    wanted = POOLS[make][n](x, window, settings.get("stride", window), settings.get("pad", 0))
    exact(make(window, **settings)(x), wanted)


@axes
@pytest.mark.parametrize("ceil_mode", [False, True])
@pytest.mark.parametrize("include", [False, True])
def test_a_mean_pool_over_the_end_and_without_pads_equals_torchs(n, ceil_mode, include):
    x = torch.randn(2, 3, *SIZES[n], dtype=torch.float64)
    pool = fl.MeanPool((3, 2, 2)[:n], stride=2, pad=1, ceil_mode=ceil_mode, count_include_pad=include)
    exact(pool(x), POOLS[fl.MeanPool][n](x, (3, 2, 2)[:n], 2, 1, ceil_mode, include))


@axes
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_a_max_pool_with_dilation_equals_torchs(n, ceil_mode):
    x = torch.randn(2, 3, *SIZES[n], dtype=torch.float64)
    pool = fl.MaxPool((2,) * n, stride=3, dilation=2, ceil_mode=ceil_mode)
    exact(pool(x), POOLS[fl.MaxPool][n](x, (2,) * n, 3, 0, 2, ceil_mode))


@axes
@pytest.mark.parametrize("p", [1, 2, 3, 4.5])
def test_an_lp_pool_is_the_power_sum_of_every_window(n, p):
    x = torch.rand(2, 3, *SIZES[n], dtype=torch.float64)
    windows = x
    for axis in range(n):
        windows = windows.unfold(2 + axis, 2, 2)
    exact(fl.LPPool((2,) * n, p)(x), windows.pow(p).sum(tuple(range(-n, 0))).pow(1 / p))


def test_an_lp_pool_of_zeros_has_a_gradient_of_zeros():
    assert fl.gradient(lambda x: fl.LPPool((2,))(x).sum(), torch.zeros(1, 1, 2)).tolist() == [[[0.0, 0.0]]]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float16])
def test_padding_is_never_a_maximum_where_the_ends_differ(dtype):
    x = torch.full((1, 1, 2, 2), -4, dtype=dtype)
    assert fl.MaxPool((2, 2), stride=1, pad=fl.SamePad())(x).tolist() == [[[[-4, -4], [-4, -4]]]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("make", [fl.MeanPool, fl.LPPool])
def test_means_of_volumes_run_in_16_bits_where_torchs_kernel_has_none(make, dtype):
    x = torch.rand(1, 2, 4, 4, 4).to(dtype)
    y = make((2, 2, 2))(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double(), make((2, 2, 2))(x.double()), rtol=2**-7, atol=0)


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


def windows_without_entries(n, k, stride, pad, dilation, ceil_mode):
    """Whether a window holds only padding: torch's own maximum of it is -inf."""
    x = torch.zeros(1, 1, n)
    y = torch.nn.functional.pad(x, pad, value=-torch.inf)
    return bool((torch.nn.functional.max_pool1d(y, k, stride, 0, dilation, ceil_mode) == -torch.inf).any())


@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2, 3, 4])
@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_a_window_that_holds_only_padding_is_refused_and_no_other(n, k, dilation, stride):
    reach = dilation * (k - 1) + 1
    for lo in range(reach // 2 + 1):
        for hi in range(reach // 2 + 1):
            if n + lo + hi < reach:
                continue
            pool = fl.MaxPool((k,), stride=stride, pad=((lo, hi),), dilation=dilation)
            if windows_without_entries(n, k, stride, (lo, hi), dilation, False):
                with pytest.raises(ValueError, match=rf"holds only padding of an input of size \({n},\)"):
                    pool(torch.zeros(1, 1, n))
            else:
                assert pool(torch.zeros(1, 1, n)).isfinite().all()


def test_a_dilated_window_over_images_holds_only_padding_of_one_axis():
    pool = fl.MaxPool((2, 2), stride=1, pad=fl.SamePad(), dilation=(3, 1))
    assert pool(torch.zeros(1, 1, 3, 2)).shape == (1, 1, 3, 2)
    with pytest.raises(ValueError, match=r"\(2, 2\) with dilation=\(3, 1\), holds only padding .* \(2, 9\)"):
        pool(torch.zeros(1, 1, 2, 9))


@pytest.mark.parametrize("make", [fl.MaxPool, fl.MeanPool])
@pytest.mark.parametrize("pad", [0, 1, ((1, 0),)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64], ids=str)
def test_a_dtype_that_torch_can_not_pool_says_what_to_write(make, pad, dtype):
    with pytest.raises(TypeError, match=rf"Pool has no kernel for {dtype} on cpu; write x\.float\(\)"):
        make((2,), pad=pad)(torch.ones(1, 1, 4).to(dtype))


@pytest.mark.parametrize(
    "pool", [fl.MaxPool((2,)), fl.MeanPool((2,)), fl.LPPool((2,)), fl.AdaptiveMaxPool((2,)),
             fl.GlobalMaxPool(), fl.GlobalMeanPool()], ids=lambda p: type(p).__name__
)  # fmt: skip
def test_a_pool_of_what_is_no_tensor_is_a_type_error(pool):
    with pytest.raises(
        TypeError, match=rf"{type(pool).__name__} takes a tensor of shape \(N, C, .*found list"
    ):
        pool([1.0])
