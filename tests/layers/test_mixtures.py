"""A layer and its input in different dtypes, or on different devices: one rule."""

from __future__ import annotations

import warnings

import pytest
import torch

import fluxlike as fl

NORMS = [
    (fl.LayerNorm(3), (2, 3)),
    (fl.RMSNorm(3), (2, 3)),
    (fl.BatchNorm(3), (2, 3)),
    (fl.BatchNorm(3, affine=False), (2, 3)),
    (fl.BatchNorm(3, track_stats=False), (2, 3)),
    (fl.GroupNorm(3, 1), (2, 3)),
    (fl.InstanceNorm(3, affine=True), (2, 3, 4)),
    (fl.InstanceNorm(3, track_stats=True), (2, 3, 4)),
]
LAYERS = [*NORMS, (fl.Dense(3, 2), (2, 3)), (fl.Scale(3), (2, 3)), (fl.Scale(3, bias=False), (2, 3))]
FREE = [
    (fl.LayerNorm(3, affine=False), (2, 3)),
    (fl.RMSNorm(3, affine=False), (2, 3)),
    (fl.GroupNorm(3, 1, affine=False), (2, 3)),
    (fl.InstanceNorm(3), (2, 3, 4)),
    (fl.BatchNorm(3, affine=False, track_stats=False), (2, 3)),
]

both_modes = pytest.mark.parametrize("mode", ["train", "test"])


def each(cases):
    return pytest.mark.parametrize(("layer", "shape"), cases, ids=lambda v: getattr(v, "extra_repr", str)())


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@each(LAYERS)
@both_modes
@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.complex64], ids=str)
def test_another_dtype_is_an_error_that_says_what_to_write(layer, shape, mode, dtype):
    wanted = (
        rf"^{type(layer).__name__} holds float32, its input is {str(dtype)[6:]}; write x\.to\(torch\.float32"
    )
    with fl.mode(mode), pytest.raises(ValueError, match=wanted):
        layer(torch.ones(shape).to(dtype))


@each(LAYERS)
@both_modes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_another_device_is_an_error_that_says_what_to_write(layer, shape, mode, dtype):
    wanted = rf"^{type(layer).__name__} is on cpu, its input on meta; write fluxlike\.to_device\(x, 'cpu'\)"
    with fl.mode(mode), pytest.raises(ValueError, match=wanted):
        layer(torch.ones(shape, dtype=dtype, device="meta"))


@each(LAYERS)
def test_a_float32_input_of_a_float64_layer_is_an_error(layer, shape):
    with pytest.raises(
        ValueError, match=r"holds float64, its input is float32; write x\.to\(torch\.float64\)"
    ):
        fl.f64(layer)(torch.ones(shape))


@each([*NORMS, *FREE])
@both_modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_norms_take_16_bits_whatever_they_hold(layer, shape, mode, dtype):
    x = torch.randn(shape).to(dtype)
    with fl.mode(mode):
        assert layer(x).dtype == dtype
        assert torch.equal(layer(x), layer(x.float()).to(dtype))
        assert torch.equal(fl.f64(layer)(x), fl.f64(layer)(x.double()).to(dtype)) or not fl.fleaves(layer)


@each(FREE)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_norms_without_tensors_take_any_floats(layer, shape, dtype):
    assert layer(torch.randn(shape).to(dtype)).dtype == dtype


def test_scale_follows_autocast():
    model = fl.Chain(fl.Dense(3, 3), fl.Scale(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.ones(1, 3)).dtype == torch.float32


def test_an_error_of_the_activation_stays_what_it_is():
    def fails(x):
        raise RuntimeError("of the activation")

    with pytest.raises(RuntimeError, match=r"^of the activation$"):
        fl.LayerNorm(3, fails)(torch.ones(2, 3).half())
