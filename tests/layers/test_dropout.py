"""Dropout, AlphaDropout and DropPath: what they draw, and from what."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fluxlike as fl

DROPS = {
    "Dropout": lambda p: fl.Dropout(p),
    "Dropout of channels": lambda p: fl.Dropout(p, dims=(0, 1)),
    "AlphaDropout": lambda p: fl.AlphaDropout(p),
    "DropPath": lambda p: fl.DropPath(p),
}
every_drop = pytest.mark.parametrize("make", DROPS.values(), ids=DROPS)


@every_drop
def test_in_test_mode_it_returns_its_input(make):
    x = torch.ones(5, 2)
    assert make(0.9)(x) is x


@every_drop
def test_under_a_key_it_is_a_function_of_it_and_leaves_torchs_generator_alone(make):
    x, drop = torch.randn(50, 4), fl.trainmode(make(0.5))
    before = torch.get_rng_state()
    with fl.seeded(fl.Key(1)):
        first, second = drop(x), drop(x)
    with fl.seeded(fl.Key(1)):
        again = drop(x)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


@every_drop
def test_members_under_vmap_draw_what_they_would_draw_alone(make):
    x, drop, key = torch.randn(6, 5, 4), fl.trainmode(make(0.5)), fl.Key(2)
    with fl.seeded(key):
        together = fl.vmap(drop, randomness="different")(x)
    for i in range(6):
        with fl.seeded(key.fold_in(i)):
            assert torch.equal(together[i], drop(x[i]))


@every_drop
def test_under_vmap_without_a_key_members_draw_apart(make):
    drop = fl.trainmode(make(0.5))
    y = fl.vmap(drop, randomness="different")(torch.ones(40, 7, 3))
    assert len({tuple(member.flatten().tolist()) for member in y}) > 20


@every_drop
@pytest.mark.parametrize("p", [0, 1, 0.0, 1.0])
@pytest.mark.parametrize("keyed", [False, True], ids=["torch's generator", "key"])
def test_at_the_ends_it_keeps_or_drops_all(make, p, keyed):
    x = torch.randn(5, 3)
    key = fl.seeded(fl.Key(0)) if keyed else fl.mode("train")
    with fl.mode("train"), key:
        assert torch.allclose(make(p)(x), x * (1 - p))


@pytest.mark.parametrize("make", [fl.Dropout, fl.AlphaDropout, fl.DropPath])
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan"), float("inf")])
def test_no_probability_is_an_error(make, p):
    with pytest.raises(ValueError, match=rf"{make.__name__}\(p=.*\): write a probability, from 0 to 1"):
        make(p)


@pytest.mark.parametrize("keyed", [False, True], ids=["torch's generator", "key"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["Dropout", "Dropout of channels", "DropPath"])
def test_in_16_bits_what_is_kept_is_rounded_once(name, dtype, keyed):
    if name == "Dropout" and not keyed:
        pytest.skip("torch's own kernel")
    torch.manual_seed(0)
    x = torch.randn(200, 5).to(dtype)
    with fl.mode("train"), fl.seeded(fl.Key(0)) if keyed else fl.mode("train"):
        y = DROPS[name](0.1)(x)
    kept = y != 0
    assert 0.8 < kept.double().mean() < 0.97
    assert torch.equal(y[kept], (x[kept].double() / 0.9).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("shape", "twin"), [((5, 4, 3), nn.Dropout1d), ((5, 4, 3, 2), nn.Dropout2d)], ids=str
)
def test_dropout_of_channels_after_manual_seed_equals_torchs(shape, twin, dtype):
    x = torch.randn(shape, dtype=dtype)
    torch.manual_seed(3)
    wanted = twin(0.4)(x)
    torch.manual_seed(3)
    with fl.mode("train"):
        torch.testing.assert_close(fl.Dropout(0.4, dims=(0, 1))(x), wanted)


@pytest.mark.parametrize("dims", [0, 1, 2, -1, (0, 1), (0, 2), (-1, 0), ()], ids=str)
def test_what_differs_in_other_axes_alone_is_dropped_together(dims):
    torch.manual_seed(0)
    y = fl.trainmode(fl.Dropout(0.5, dims=dims))(torch.ones(20, 30, 40))
    apart = {d % 3 for d in ((dims,) if isinstance(dims, int) else dims)}
    for axis in range(3):
        alike = bool((y == y.narrow(axis, 0, 1)).all())
        assert alike == (axis not in apart)
    assert set(y.unique().tolist()) <= {0.0, 2.0}


def test_dropout_along_all_axes_is_dropout_under_a_key():
    x = torch.randn(6, 5)
    with fl.mode("train"), fl.seeded(fl.Key(4)):
        plain = fl.Dropout(0.3)(x)
    with fl.mode("train"), fl.seeded(fl.Key(4)):
        assert torch.equal(fl.Dropout(0.3, dims=(0, 1))(x), plain)


def test_droppath_is_dropout_along_the_batch():
    x = torch.randn(30, 2, 3)
    for scope in (lambda: fl.seeded(fl.Key(4)), lambda: torch.random.fork_rng(devices=[])):
        results = []
        for drop in (fl.DropPath(0.3), fl.Dropout(0.3, dims=0)):
            with fl.mode("train"), scope():
                if fl.scope.seeded.active() is None:
                    torch.manual_seed(1)
                results.append(drop(x))
        assert torch.equal(*results)


def test_droppath_drops_a_share_of_p_whole_examples_and_scales_the_rest():
    torch.manual_seed(0)
    y = fl.trainmode(fl.DropPath(0.2))(torch.ones(100_000, 2))
    assert torch.equal(y[:, 0], y[:, 1])
    assert set(y.unique().tolist()) == {0.0, 1.25}
    assert abs((y[:, 0] == 0).double().mean().item() - 0.2) < 4 * (0.2 * 0.8 / 100_000) ** 0.5


def test_a_residual_branch_that_droppath_leaves_out_is_the_identity():
    block = fl.SkipConnection(fl.Chain(fl.Dense(3, 3), fl.DropPath(1.0)), torch.add)
    x = torch.randn(4, 3)
    with fl.mode("train"):
        assert torch.equal(block(x), x)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_alphadropout_after_manual_seed_equals_torchs(p):
    x = torch.randn(50, 4)
    torch.manual_seed(3)
    wanted = nn.AlphaDropout(p)(x)
    torch.manual_seed(3)
    with fl.mode("train"):
        assert torch.equal(fl.AlphaDropout(p)(x), wanted)


@pytest.mark.parametrize("keyed", [False, True], ids=["torch's generator", "key"])
@pytest.mark.parametrize("p", [0.1, 0.5])
def test_alphadropout_keeps_mean_and_variance(keyed, p):
    torch.manual_seed(0)
    x = torch.randn(200_000, dtype=torch.float64)
    with fl.mode("train"), fl.seeded(fl.Key(0)) if keyed else fl.mode("train"):
        y = fl.AlphaDropout(p)(x)
    assert abs(y.mean().item()) < 0.015
    assert abs(y.var().item() - 1) < 0.03


def test_alphadropout_under_a_key_makes_the_values_of_torch():
    torch.manual_seed(0)
    drop, x = fl.trainmode(fl.AlphaDropout(0.3)), torch.zeros(100, dtype=torch.float64)
    with fl.seeded(fl.Key(0)):
        mine = drop(x).unique()
    torch.testing.assert_close(mine, nn.AlphaDropout(0.3)(x).unique(), rtol=1e-12, atol=1e-12)
    assert len(mine) == 2


def test_alphadropout_drops_what_is_not_finite():
    drop = fl.trainmode(fl.AlphaDropout(0.5))
    with fl.seeded(fl.Key(0)):
        y = drop(torch.full((100,), math.inf))
    assert set(y.isfinite().tolist()) == {True, False}


def test_an_axis_named_twice_is_an_error():
    with pytest.raises(ValueError, match=r"Dropout\(dims=\(1, 1\)\): write each axis once"):
        fl.Dropout(0.5, dims=(1, 1))


def test_an_axis_that_is_not_there_is_an_error_in_train_mode():
    with fl.mode("train"):
        with pytest.raises(ValueError, match=r"Dropout draws along the axes \(0, 2\), found .* \(3, 4\)"):
            fl.Dropout(0.5, dims=(0, 2))(torch.ones(3, 4))
        with pytest.raises(ValueError, match=r"DropPath draws along the axes \(0,\), found .* \(\)"):
            fl.DropPath(0.5)(torch.tensor(1.0))
        with pytest.raises(TypeError, match="DropPath takes a tensor, found str"):
            fl.DropPath(0.5)("text")


def test_dims_are_printed():
    assert repr(fl.Dropout(0.1, dims=(0, 1))) == "Dropout(0.1, dims=(0, 1))"
    assert repr(fl.Dropout(0.1, dims=1)) == "Dropout(0.1, dims=1)"
    assert repr(fl.Dropout(0.1, dims=())) == "Dropout(0.1, dims=())"


def test_a_probability_that_would_be_trained_is_refused():
    with pytest.raises(TypeError, match=r"write a probability as a Python number"):
        fl.Dropout(torch.tensor(0.3))


@every_drop
@pytest.mark.parametrize("keyed", [False, True], ids=["torch's generator", "key"])
def test_what_can_not_be_scaled_is_an_error_that_names_the_layer(make, keyed):
    drop = make(0.3)
    name = type(drop).__name__
    with fl.mode("train"), fl.seeded(fl.Key(0)) if keyed else fl.mode("train"):
        with pytest.raises(TypeError, match=rf"^{name} .* torch.int64 can't hold; write x.float\(\)$"):
            drop(torch.ones(3, 2, dtype=torch.int64))
        with pytest.raises(TypeError, match=f"^{name} takes a tensor, found list$"):
            drop([1.0])


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
