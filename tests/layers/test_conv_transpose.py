from __future__ import annotations

import pytest
import torch
from torch import nn

import fluxlike as fl

TRANSPOSES = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SIZES = {1: (5,), 2: (5, 4), 3: (4, 3, 3)}
axes = pytest.mark.parametrize("n", [1, 2, 3])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def exact(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@axes
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"stride": 2},
        {"stride": 3, "outpad": 2},
        {"pad": 1},
        {"dilation": 2, "outpad": 1},
        {"stride": 2, "pad": 1, "outpad": 1, "dilation": 2},
    ],
    ids=str,
)
def test_it_equals_torchs(n, groups, bias, settings):
    up = fl.f64(fl.ConvTranspose((3, 2, 2)[:n], 4, 6, groups=groups, bias=bias, **settings))
    if bias:
        up = fl.at(up, ".bias").set(torch.randn(6, dtype=torch.float64))
    names = {"pad": "padding", "outpad": "output_padding"}
    torchs = {names.get(k, k): v for k, v in settings.items()}
    twin = TRANSPOSES[n](4, 6, (3, 2, 2)[:n], groups=groups, bias=bias, **torchs).double()
    twin.load_state_dict({k: v for k, v in vars(up).items() if isinstance(v, torch.Tensor)})
    x = torch.randn(2, 4, *SIZES[n], dtype=torch.float64)
    exact(up(x), twin(x).detach())


@axes
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "pad": 1}, {"dilation": 2}], ids=str)
def test_it_is_the_gradient_of_the_convolution_with_its_weight(n, settings):
    conv = fl.f64(fl.Conv((3,) * n, 2, 4, bias=False, **settings))
    up = fl.at(fl.f64(fl.ConvTranspose((3,) * n, 4, 2, bias=False, **settings)), ".weight").set(conv.weight)
    x = torch.randn(1, 2, *(7,) * n, dtype=torch.float64)
    y, pull = fl.pullback(conv, x)
    c = torch.randn_like(y)
    wanted = pull(c)
    exact(up(c), wanted)


def test_weight_and_bias_have_torchs_shapes_and_bias_starts_at_zero():
    up = fl.ConvTranspose((3, 5), 4, 6, groups=2)
    assert up.weight.shape == (4, 3, 3, 5)
    assert torch.equal(up.bias, torch.zeros(6))


def test_activation_comes_after_the_bias():
    up = fl.at(fl.ConvTranspose((1,), 1, 1, fl.relu), ".bias").set(torch.tensor([-100.0]))
    assert up(torch.ones(1, 1, 3)).tolist() == [[[0.0, 0.0, 0.0]]]


def test_same_pad_takes_away_kernel_less_stride_the_larger_part_first():
    assert fl.ConvTranspose((5,), 1, 1, stride=2, pad=fl.SamePad()).pad == ((2, 1),)
    assert fl.ConvTranspose((4,), 1, 1, stride=2, pad=fl.SamePad()).pad == (1,)


def test_same_pad_of_a_kernel_smaller_than_its_stride_fills_up_the_end():
    up = fl.ConvTranspose((1,), 1, 1, stride=3, pad=fl.SamePad(), bias=False, init=torch.ones)
    assert up(torch.tensor([[[1.0, 2.0]]])).tolist() == [[[1.0, 0.0, 0.0, 2.0, 0.0, 0.0]]]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: fl.ConvTranspose(3, 1, 1),
            r"kernel_size=3: write one number an axis.*ConvTranspose\(\(3, 3\)",
        ),
        (lambda: fl.ConvTranspose((3,), 3, 4, groups=2), r"groups=2 does not divide the channels 3 and 4"),
        (lambda: fl.ConvTranspose((3,), 1, 1, stride=0), r"stride=0: write numbers of at least 1"),
        (lambda: fl.ConvTranspose((3,), 1, 1, outpad=-1), r"outpad=-1: write numbers of at least 0"),
        (
            lambda: fl.ConvTranspose((3,), 1, 1, outpad=1),
            r"outpad=1: write less than the stride \(1,\) or the",
        ),
        (
            lambda: fl.ConvTranspose((3,), 1, 1, pad=3)(torch.zeros(1, 1, 2)),
            r"makes of the input's \(2,\) an output of \(-2,\): its pad \(3,\) takes away more",
        ),
        (
            lambda: fl.ConvTranspose((3,), 1, 1, pad=(3, 4))(torch.zeros(1, 1, 2)),
            r"an output of \(-3,\): its pad \(\(3, 4\),\) takes away more",
        ),
        (
            lambda: fl.ConvTranspose((3,), 4, 1)(torch.zeros(1, 2, 4)),
            r"ConvTranspose takes the shape \(N, 4, L\), found \(1, 2, 4\); the channels seem to be last",
        ),
        (
            lambda: fl.ConvTranspose((3,), 1, 1)(torch.zeros(1, 1, 4).double()),
            r"ConvTranspose holds float32, its input is float64",
        ),
        (
            lambda: fl.stack([fl.ConvTranspose((3,), 1, 1)] * 2)(torch.zeros(1, 1, 4)),
            r"ConvTranspose over 1 axes has a weight of 3 axes, found \(2, 1, 1, 3\)",
        ),
    ],
)
def test_what_can_not_be_is_an_error_that_shows_it(make, text):
    with pytest.raises(ValueError, match=text):
        make()
