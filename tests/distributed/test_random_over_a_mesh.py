"""What is drawn at random over a mesh: under a key the bits of one process, else other numbers a row."""

from __future__ import annotations

import contextlib
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

import fluxlike as fl
from fluxlike import distributed as d
from fluxlike._private.compiler import build
from tests.distributed.agreeing import differences
from tests.distributed.ranks import run

KEYED = {
    "Dropout": lambda: fl.Dropout(0.4),
    "Dropout of channels": lambda: fl.Dropout(0.4, dims=(0, 1)),
    "Dropout of features": lambda: fl.Dropout(0.4, dims=1),
    "AlphaDropout": lambda: fl.AlphaDropout(0.4),
    "DropPath": lambda: fl.DropPath(0.4),
    "two in a row": lambda: fl.Chain(fl.Dropout(0.4), fl.Dense(7, 5), fl.Dropout(0.4)),
    "attention": lambda: fl.Chain(fl.Dense(7, 8), fl.MultiHeadAttention(8, 2, dropout=0.4)),
    "LSTM": lambda: fl.LSTM(7, 5, num_layers=2, dropout=0.4),
}


def keyed(name, rows):
    layer, x = KEYED[name](), torch.randn(rows, 3, 7)
    with fl.mode("train"), fl.seeded(fl.Key(3)):
        expected = layer(x), fl.random.normal((4,)), layer(x)
    over = fl.to_device(layer, d.mesh()), d.shard_batch(x, d.mesh())
    with fl.mode("train"), fl.seeded(fl.Key(3)):
        found = over[0](over[1]), fl.random.normal((4,)), over[0](over[1])
    return [
        float((a.full_tensor() if hasattr(a, "full_tensor") else a).sub(b).abs().max())
        for a, b in zip(found, expected, strict=True)
    ] + [float((expected[0] - expected[2]).abs().max())]


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize(("ranks", "rows"), [(2, 6), (3, 6), (2, 5)])
def test_under_a_key_the_draws_are_those_of_one_process(name, ranks, rows):
    for *far, between in run(keyed, ranks, name, rows):
        assert max(far) < 1e-6
        assert between > 0.01


def bits():
    x = torch.ones(6, 11)  # so that the second rank begins inside a block of draws
    key = fl.Key(5)
    with fl.mode("train"), fl.seeded(key):
        expected = fl.Dropout(0.5)(x)
    over = d.shard_batch(x, d.mesh())
    with fl.mode("train"), fl.seeded(key):
        found = fl.Dropout(0.5)(over)
    return str(found.placements), torch.equal(found.full_tensor(), expected)


@pytest.mark.parametrize("ranks", [2, 3])
def test_dropout_under_a_key_is_the_same_bits_and_moves_no_rows(ranks):
    assert run(bits, ranks) == [("(Shard(dim=0),)", True)] * ranks


def gradient_under_a_key():
    model, x = fl.Chain(fl.Dense(7, 5), fl.Dropout(0.5), fl.Dense(5, 2)), torch.randn(6, 7)

    def loss(model, x):
        return (model(x) + fl.random.normal((2,))).square().mean()

    expected = fl.gradient(loss, model, x, key=fl.Key(1))
    found = fl.gradient(
        loss, fl.to_device(model, d.mesh(), d.shard()), d.shard_batch(x, d.mesh()), key=fl.Key(1)
    )
    return fl.tree.allclose(fl.cpu(found), expected, atol=1e-6)


def test_a_gradient_with_a_key_is_that_of_one_process():
    assert run(gradient_under_a_key, 2) == [True, True]


def attended(x, p):
    q = torch.stack([x, 2 * x, 3 * x])[:, :, None].expand(3, *x.shape[:1], 2, *x.shape[1:])
    return F.scaled_dot_product_attention(*q, dropout_p=p)


UNKEYED = {
    "F.dropout": lambda x: F.dropout(x, 0.5),
    "fl.Dropout": lambda x: fl.Dropout(0.5)(x),
    "in place": lambda x: F.dropout(x.clone(), 0.5, inplace=True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, training=True),
    "dropout of channels": lambda x: F.dropout1d(x, 0.5),
    "torch.dropout": lambda x: torch.dropout(x, 0.5, True),
    "attention": lambda x: attended(x, 0.5),
    "module of attention": lambda x: fl.from_torch(torch.nn.MultiheadAttention(8, 2, 0.5, batch_first=True))(
        x, x, x
    )[0],
    "module of LSTM": lambda x: fl.from_torch(torch.nn.LSTM(8, 8, 2, dropout=0.5, batch_first=True))(x)[0],
    "randn_like": torch.randn_like,
    "rand_like": torch.rand_like,
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.5)),
    "bernoulli_": lambda x: x.clone().bernoulli_(0.5),
    "normal_": lambda x: x.clone().normal_(),
    "normal": lambda x: torch.normal(x, 1.0),
    "rrelu": lambda x: F.rrelu(-x, training=True),
    "multinomial": lambda x: torch.multinomial(torch.ones_like(x[:, 0]), 6, True).float()[:, :, None],
    "gumbel_softmax": F.gumbel_softmax,
}


def unkeyed(name, rows):
    torch.manual_seed(7)
    x = d.shard_batch(torch.ones(rows, 4, 8), d.mesh())
    torch.manual_seed(8)
    with fl.mode("train"):
        first = UNKEYED[name](x)
        second = UNKEYED[name](x)
    after = torch.rand(1).item()
    return first.full_tensor(), second.full_tensor(), first.to_local().shape[0], after


@pytest.mark.parametrize("name", UNKEYED)
def test_without_a_key_each_rank_draws_its_own_numbers_for_its_rows(name):
    (first, second, kept, after), (other, _, _, after_there) = run(unkeyed, 2, name, 8)
    assert kept == 4
    assert not torch.equal(first[:4], first[4:])  # the rows of one rank are not those of the other
    assert not torch.equal(first, second)
    assert torch.equal(first, other)
    assert after == after_there  # the generators stand alike


@pytest.mark.parametrize("name", ["F.dropout", "attention", "randn_like", "normal_"])
def test_without_a_key_rows_that_every_rank_has_are_drawn_alike(name):
    first, second = run(unkeyed, 2, name, 5)
    assert torch.equal(first[0], second[0])
    assert first[2:] == second[2:]
    assert first[2] == 5


def in_test_mode():
    before = torch.default_generator.get_state()
    x = d.shard_batch(torch.ones(6, 4, 8), d.mesh())
    for f in (
        lambda x: F.dropout(x, 0.5, False), lambda x: torch.dropout(x, 0.5, False), fl.Dropout(0.5),
        lambda x: F.alpha_dropout(x, 0.5), lambda x: F.dropout1d(x, 0.5, False), F.rrelu,
        fl.from_torch(torch.nn.Dropout1d(0.5)),
    ):  # fmt: skip
        f(x)
    return torch.equal(before, torch.default_generator.get_state())


def test_in_test_mode_nothing_is_drawn():
    assert run(in_test_mode, 2) == [True, True]


def compiled(keyed):
    torch.manual_seed(0)
    model, x = fl.Chain(fl.Dense(4, 64), fl.Dropout(0.5)), torch.ones(4, 4)

    def call(model, x, key=None):
        with fl.mode("train"), fl.seeded(key) if keyed else contextlib.nullcontext():
            return model(x)

    keys = [fl.Key(1)] if keyed else []
    y = fl.jit(call)(fl.to_device(model, d.mesh()), d.shard_batch(x, d.mesh()), *keys).full_tensor()
    return y, call(model, x, *keys)


@pytest.mark.slow
def test_compiled_dropout_draws_under_a_key_what_one_process_draws_and_else_other_numbers_a_rank():
    for found, expected in run(compiled, 2, True, timeout=300):
        assert torch.allclose(found, expected, atol=1e-6)
    (first, _), (second, _) = run(compiled, 2, False, timeout=300)
    assert torch.equal(first, second)
    assert not torch.equal(first[:2] == 0, first[2:] == 0)


def of_other_placements():
    """Dropout under a key of a pending sum, and of rows of which a rank has some of each head."""
    torch.set_default_dtype(torch.float64)
    mesh, x = d.mesh(model=2), torch.randn(5, 6)
    model = {"w": torch.randn(6, 3), "heads": torch.randn(3, 4, 2)}

    def dropped(m, x):
        drop = fl.Dropout(0.5)
        return drop(x @ m["w"]).sin().sum() + drop(m["heads"].flatten(0, 1)).sin().sum()

    with fl.mode("train"):
        expected = fl.withgradient(dropped, model, x, key=fl.Key(0))
        plan = d.by_path({"w": d.split(0), "heads": d.split(1)})
        over = fl.to_device(model, mesh, plan), d.shard_batch(x, mesh)
        return differences(fl.withgradient(dropped, *over, key=fl.Key(0)), expected)


def test_dropout_under_a_key_of_a_pending_sum_or_of_divided_heads_has_the_gradient_of_one_process():
    assert run(of_other_placements, 2) == [[], []]


def traced_heads():
    model = {"heads": torch.randn(3, 4, 2)}

    def f(m):
        return m["heads"].flatten(0, 1).softmax(0)

    over = fl.to_device(model, d.mesh(model=2), d.split(1))
    with mock.patch.object(build, "_can_compile", return_value=False):
        return differences(fl.jit(f)(over), f(model), 1e-6)


def test_a_trace_gathers_rows_of_which_a_rank_has_some_of_each_head():
    assert run(traced_heads, 2) == [[], []]


def share_kept():
    x = d.shard_batch(torch.ones(4000, 10), d.mesh())
    y = F.dropout(x, 0.3)
    return float((y != 0).double().mean()), float(y.mean())


def test_dropout_keeps_its_share_and_its_mean():
    for kept, mean in run(share_kept, 2):
        assert abs(kept - 0.7) < 0.01
        assert abs(mean - 1) < 0.015


def plain_noise():
    x = d.shard_batch(torch.zeros(6, 3), d.mesh())
    noisy = x + fl.random.normal(x.shape)
    torch.manual_seed(0)
    return torch.equal(noisy.full_tensor(), fl.random.normal((6, 3)))


def test_noise_of_the_shape_of_a_batch_is_that_of_one_process_where_the_ranks_are_seeded_alike():
    assert run(plain_noise, 2) == [True, True]


def with_a_generator():
    x = d.shard_batch(torch.ones(6, 3), d.mesh())
    with pytest.raises(ValueError, match=r"bernoulli over a mesh.*draw from a key"):
        torch.bernoulli(x, generator=torch.Generator())


def test_a_generator_is_refused_over_a_mesh():
    run(with_a_generator, 2)
