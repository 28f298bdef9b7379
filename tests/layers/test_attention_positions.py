"""Positions: rotary and sinusoidal, by their formulas and by what they are for."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fluxlike as fl

law = settings(max_examples=40, deadline=None)


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def exact(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


rotaries = st.builds(
    fl.RotaryEmbedding,
    st.sampled_from([2, 4, 6]),
    base=st.sampled_from([10.0, 10000.0]),
    interleaved=st.booleans(),
)


@law
@given(rotaries, st.integers(0, 1000), st.integers(0, 50), st.integers(0, 50))
def test_a_product_depends_on_how_far_apart_two_tokens_are_not_on_where(
    rotary: fl.RotaryEmbedding, shift: int, m: int, n: int
):
    q, k = randn(1, 6), randn(1, 6)

    def product(at: int) -> Tensor:
        return (rotary(q, torch.tensor([m + at])) * rotary(k, torch.tensor([n + at]))).sum()

    exact(product(shift), product(0))


@law
@given(rotaries, st.integers(0, 1000))
def test_a_rotation_keeps_lengths_and_position_zero(rotary: fl.RotaryEmbedding, m: int):
    x = randn(3, 1, 8)
    exact(rotary(x, torch.tensor([m])).norm(dim=-1), x.norm(dim=-1))
    exact(rotary(x), x)
    exact(rotary(x, torch.tensor([m]))[..., rotary.dim :], x[..., rotary.dim :])


@law
@given(rotaries, st.integers(0, 100), st.integers(0, 100))
def test_rotations_add_up(rotary: fl.RotaryEmbedding, m: int, n: int):
    x = randn(1, 6)
    twice = rotary(rotary(x, torch.tensor([m])), torch.tensor([n]))
    exact(twice, rotary(x, torch.tensor([m + n])))


@law
@given(st.sampled_from([2, 4, 6]))
def test_the_layouts_are_each_other_with_the_features_in_another_order(dim: int):
    x = randn(2, 5, dim)
    order = torch.arange(dim).unflatten(0, (-1, 2)).T.flatten()  # 0, 2, 4, …, 1, 3, 5, …
    halves = fl.RotaryEmbedding(dim)(x[..., order])
    exact(fl.RotaryEmbedding(dim, interleaved=True)(x)[..., order], halves)


def test_a_rotation_of_a_pair_is_a_product_of_complex_numbers():
    x = randn(7, 2)
    turned = torch.view_as_complex(x) * torch.exp(1j * torch.arange(7, dtype=torch.float64))
    for interleaved in (False, True):
        exact(fl.RotaryEmbedding(2, interleaved=interleaved)(x), torch.view_as_real(turned))


def test_positions_may_differ_by_sequence():
    rotary, x = fl.RotaryEmbedding(4), randn(2, 3, 5, 4)
    positions = torch.tensor([[0, 1, 2, 3, 4], [7, 8, 9, 10, 11]])
    y = rotary(x, positions[:, None])
    exact(y[0], rotary(x[0]))
    exact(y[1], rotary(x[1], torch.arange(7, 12)))


def test_the_scores_of_an_attention_do_not_change_when_all_tokens_move_on():
    layer = fl.f64(fl.MultiHeadAttention(8, 2, rotary=fl.RotaryEmbedding(4)))
    x, before = randn(1, 4, 8), randn(1, 3, 8)
    mask = torch.ones(7, dtype=torch.bool)
    mask[:3] = False  # three tokens before that nothing attends
    later = layer(torch.cat((before, x), 1), mask=mask[None])[:, 3:]
    exact(later, layer(x))

    # but it does where they change places, as it would not without positions
    assert not torch.allclose(layer(x[:, [1, 0, 2, 3]])[:, [1, 0, 2, 3]], layer(x))


def test_far_positions_keep_their_digits_in_sixteen_bits():
    x, at = torch.ones(1, 64), torch.tensor([30001])
    wide = fl.RotaryEmbedding(64)(x, at)
    for dtype in (torch.bfloat16, torch.float16):
        y = fl.RotaryEmbedding(64)(x.to(dtype), at)
        assert y.dtype == dtype
        torch.testing.assert_close(y.float(), wide, rtol=0, atol=2 * torch.finfo(dtype).eps)


def test_the_first_sinusoidal_positions_are_those_of_the_paper():
    y = fl.SinusoidalEmbedding(512)(torch.arange(100))
    for m, i in ((0, 0), (1, 0), (1, 1), (50, 100), (99, 511)):
        angle = m / 10000 ** (i // 2 * 2 / 512)
        assert math.isclose(y[m, i], math.cos(angle) if i % 2 else math.sin(angle), abs_tol=1e-5)


@law
@given(st.integers(0, 1000), st.integers(0, 1000))
def test_a_shift_of_sinusoidal_positions_is_a_rotation_whatever_the_position(m: int, n: int):
    """What the paper chose them for: PE(m + n) is a linear function of PE(m)."""
    encode = fl.SinusoidalEmbedding(8)
    at = lambda k: encode(torch.tensor(float(k), dtype=torch.float64))  # noqa: E731
    sin, cos = at(n)[0::2], at(n)[1::2]
    s, c = at(m)[0::2], at(m)[1::2]
    exact(at(m + n), torch.stack((s * cos + c * sin, c * cos - s * sin), -1).flatten())


def test_sinusoidal_positions_take_the_place_of_learnt_ones():
    positions = torch.arange(6).reshape(2, 3)
    for embedding in (fl.SinusoidalEmbedding(8), fl.Embedding(10, 8)):
        assert embedding(positions).shape == (2, 3, 8)
        assert embedding(positions).dtype == torch.float32
    assert fl.SinusoidalEmbedding(8)(torch.tensor(0.5, dtype=torch.float64)).dtype == torch.float64


def test_they_are_values_that_are_equal_where_their_settings_are():
    assert fl.RotaryEmbedding(4) == fl.RotaryEmbedding(4)
    assert fl.RotaryEmbedding(4) != fl.RotaryEmbedding(4, interleaved=True)
    one, other = (fl.MultiHeadAttention(8, 2, rotary=fl.RotaryEmbedding(4)) for _ in range(2))
    assert fl.tree.add(one, other).rotary == fl.RotaryEmbedding(4)


@pytest.mark.parametrize("make", [fl.RotaryEmbedding, fl.SinusoidalEmbedding])
@pytest.mark.parametrize("dim", [3, 0, 2.0])
def test_an_odd_size_is_refused(make: type, dim: object):
    with pytest.raises(ValueError, match="write an even number"):
        make(dim)


def test_positions_that_are_no_tensor_are_refused():
    with pytest.raises(TypeError, match=r"found list; write torch.arange\(n\)"):
        fl.SinusoidalEmbedding(4)([0, 1])
