"""Draws as functions of key, number and element: known answers, the same bits everywhere, statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import fluxlike as fl
from fluxlike.scope import draws
from fluxlike.scope.blocks import blocks, teach_inductor
from fluxlike.scope.philox import WORD, philox

words = st.integers(0, WORD)
FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def tensors(numbers):
    return tuple(torch.tensor(n) for n in numbers)


def hexadecimal(block):
    return [f"{int(word):08x}" for word in block]


KNOWN = [
    (0, ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]),
    (WORD, ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]),
]


@pytest.mark.parametrize(("word", "block"), KNOWN, ids=["zeros", "ones"])
def test_philox_gives_the_known_answers_in_ints_and_in_tensors(word, block):
    assert hexadecimal(philox((word,) * 4, (word,) * 2)) == block
    assert hexadecimal(philox(tensors([word] * 4), tensors([word] * 2))) == block
    assert hexadecimal(philox((*tensors([word] * 2), word, word), (word, torch.tensor(word)))) == block


@pytest.mark.parametrize(("word", "block"), KNOWN, ids=["zeros", "ones"])
def test_philox_gives_the_known_answers_mapped_and_traced(word, block):
    def run(c, k):
        return torch.stack(philox(c.unbind(), k.unbind()))

    counter, key = torch.full((4,), word), torch.full((2,), word)
    mapped = torch.func.vmap(run)(counter.expand(3, 4), key.expand(3, 2))
    assert [hexadecimal(row) for row in mapped] == [block] * 3
    assert hexadecimal(make_fx(run, tracing_mode="fake")(counter + 1, key + 1)(counter, key)) == block


def reference(counter, key):
    """Philox 4x32-10 in numpy's unsigned numbers, as its paper writes it."""
    c, k = [np.uint64(x) for x in counter], [np.uint64(x) for x in key]
    low, half = np.uint64(WORD), np.uint64(32)
    for _ in range(10):
        first, second = np.uint64(0xD2511F53) * c[0], np.uint64(0xCD9E8D57) * c[2]
        c = [(second >> half) ^ c[1] ^ k[0], second & low, (first >> half) ^ c[3] ^ k[1], first & low]
        k = [(k[0] + np.uint64(0x9E3779B9)) & low, (k[1] + np.uint64(0xBB67AE85)) & low]
    return [int(x) for x in c]


@given(st.tuples(words, words, words, words), st.tuples(words, words))
def test_philox_is_that_of_the_paper(counter, key):
    wanted = reference(counter, key)
    assert list(philox(counter, key)) == wanted
    assert [int(x) for x in philox(tensors(counter), tensors(key))] == wanted
    assert [int(x) for x in philox((*tensors(counter[:1]), *counter[1:]), key)] == wanted


def block_of(key, number, index):
    return reference((index & WORD, index >> 32, number, 0), key)


@given(words, words, words, st.integers(0, 40))
def test_element_i_is_lane_i_of_its_block(first, second, number, i):
    data = torch.tensor([first, second])
    narrow = draws.uniform(data, number, (41,), torch.float32)[i]
    assert narrow.item() == (block_of((first, second), number, i // 4)[i % 4] >> 8) * 2.0**-24
    wide = draws.uniform(data, number, (41,), torch.float64)[i]
    high, low = np.reshape(block_of((first, second), number, i // 2), (2, 2))[i % 2].tolist()
    assert wide.item() == ((high >> 5) * 2**26 + (low >> 6)) * 2.0**-53
    assert draws.bernoulli(data, number, (41,), 0.3)[i].item() == (
        block_of((first, second), number, i // 4)[i % 4] < 0.3 * 2**32
    )


def test_blocks_beyond_the_first_word_are_counted_in_two():
    start = 2**32 - 1
    found = blocks(torch.tensor([5, 6]), 7, torch.arange(start, start + 3))
    assert found.tolist() == [block_of((5, 6), 7, start + i) for i in range(3)]


KINDS = {
    "uniform": lambda data, number: draws.uniform(data, number, (3, 7), torch.float32),
    "uniform16": lambda data, number: draws.uniform(data, number, (7,), torch.bfloat16),
    "uniform64": lambda data, number: draws.uniform(data, number, (3, 7), torch.float64),
    "bernoulli": lambda data, number: draws.bernoulli(data, number, (40, 2), 0.3),
    "bernoullis": lambda data, number: draws.bernoulli(data, number, (40, 2), torch.tensor([0.2, 0.7])),
    "integers": lambda data, number: draws.integers(data, number, (11,), -5, 1000),
    "permutation": lambda data, number: draws.permutation(data, number, 13),
    "dropout": lambda data, number: draws.dropout(data, number, torch.arange(1.0, 50.0), 0.4),
    "normal": lambda data, number: draws.normal(data, number, (7,), torch.float32),
    "normal64": lambda data, number: draws.normal(data, number, (7,), torch.float64),
}
ROUNDED = (KINDS["normal"], KINDS["normal64"])  # the same to rounding, the others to the bit
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def assert_same(kind, found, wanted):
    if kind in ROUNDED:
        torch.testing.assert_close(found, wanted)
    else:
        assert torch.equal(found, wanted)


@every_kind
@settings(max_examples=10, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4), number=words)
def test_member_i_under_vmap_draws_what_it_draws_alone(kind, seeds, number):
    keys = torch.stack([fl.Key(seed).data for seed in seeds])
    mapped = torch.func.vmap(lambda data: kind(data, number))(keys)
    assert_same(kind, mapped, torch.stack([kind(data, number) for data in keys]))


@every_kind
def test_a_trace_draws_what_eager_draws(kind):
    data, number = fl.Key(9).data, torch.tensor(4)
    graph = make_fx(kind, tracing_mode="fake")(data, number)
    for seed, n in ((9, 4), (10, 4), (9, 5)):
        assert_same(kind, graph(fl.Key(seed).data, torch.tensor(n)), kind(fl.Key(seed).data, n))


@every_kind
def test_a_trace_of_a_vmap_draws_what_each_member_draws_alone(kind):
    keys = fl.Key(2).split(3).data
    graph = make_fx(torch.func.vmap(lambda data: kind(data, 1)), tracing_mode="fake")(keys)
    assert_same(kind, graph(keys), torch.stack([kind(data, 1) for data in keys]))


@every_kind
def test_a_number_in_a_tensor_draws_what_the_number_draws(kind):
    data = fl.Key(1).data
    assert torch.equal(kind(data, torch.tensor(3)), kind(data, 3))


@every_kind
def test_draws_in_pieces_are_those_in_one(kind, monkeypatch):
    whole = kind(fl.Key(1).data, 2)
    mapped = torch.func.vmap(lambda data: kind(data, 2))
    members = mapped(fl.Key(1).split(3).data)
    monkeypatch.setattr("fluxlike.scope.blocks._PIECE", 3)
    assert torch.equal(kind(fl.Key(1).data, 2), whole)
    assert torch.equal(mapped(fl.Key(1).split(3).data), members)


@every_kind
def test_other_keys_and_other_numbers_draw_something_else(kind):
    first = kind(fl.Key(1).data, 2)
    assert not torch.equal(kind(fl.Key(1).data, 3), first)
    assert not torch.equal(kind(fl.Key(2).data, 2), first)
    assert not torch.equal(kind(fl.Key(2**32 + 1).data, 2), first)


@every_kind
def test_a_draw_owns_no_more_memory_than_it_shows(kind):
    x = kind(fl.Key(1).data, 2)
    assert x.is_contiguous()
    assert x.untyped_storage().nbytes() == x.numel() * x.element_size()


@every_kind
def test_drawing_leaves_torchs_generator_alone(kind):
    state = torch.get_rng_state()
    kind(fl.Key(1).data, 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_uniforms_are_multiples_below_one(dtype):
    bits = draws.BITS[dtype]
    x = draws.uniform(fl.Key(1).data, 0, (100_000,), dtype).double()
    assert x.min() >= 0
    assert x.max() <= 1 - 2.0**-bits
    scaled = x * 2.0**bits
    assert torch.equal(scaled, scaled.floor())
    assert scaled.unique().numel() > 0.99 * min(2**bits, 90_000)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 0, 3), (2, 3, 5)], ids=str)
def test_a_draw_has_the_shape_and_the_dtype_asked_for(dtype, shape):
    for draw in (draws.uniform, draws.normal):
        x = draw(fl.Key(1).data, 0, shape, dtype)
        assert (x.shape, x.dtype) == (shape, dtype)
    assert draws.permutation(fl.Key(1).data, 0, math.prod(shape)).dtype == torch.int64


@given(st.integers(0, 2**64 - 1), st.integers(0, 50))
def test_a_permutation_holds_every_number_once(seed, n):
    assert draws.permutation(fl.Key(seed).data, 0, n).sort().values.tolist() == list(range(n))


@given(st.integers(-(2**40), 2**40), st.integers(1, 2**62))
def test_integers_stay_in_their_range(low, span):
    x = draws.integers(fl.Key(1).data, 0, (50,), low, low + span)
    assert x.min() >= low
    assert x.max() < low + span


@pytest.mark.parametrize("p", [0.0, 1.0, 2.0**-32, 1 - 2.0**-33])
def test_a_probability_of_zero_never_comes_and_of_one_always(p):
    share = draws.bernoulli(fl.Key(3).data, 0, (100_000,), p).double().mean().item()
    assert share == pytest.approx(round(p), abs=1e-4)
    if p in (0.0, 1.0):
        assert share == p


# Statistics: each bound is five standard deviations or more, and the draws are always the same.

N = 1 << 18


def drawn(kind, seed=0, number=0, **options):
    return getattr(draws, kind)(fl.Key(seed).data, number, (N,), **options).double()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_uniforms_have_the_moments_of_the_uniform_distribution(dtype):
    x = drawn("uniform", dtype=dtype) + 2.0 ** (-draws.BITS[dtype] - 1)
    for power in (1, 2, 3, 4):
        deviation = (1 / (2 * power + 1) - 1 / (power + 1) ** 2) ** 0.5
        assert abs((x**power).mean().item() - 1 / (power + 1)) < 5 * deviation / N**0.5 + 1e-5


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_normals_have_the_moments_and_tails_of_the_normal_distribution(dtype):
    x = drawn("normal", dtype=dtype)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((x**power).mean().item() - moment) < 5 * (variance / N) ** 0.5 + 2e-3
    for limit in (1.0, 2.0, 3.0, 4.0):
        share = math.erfc(limit / 2**0.5)
        assert abs((x.abs() > limit).double().mean().item() - share) < 5 * (share / N) ** 0.5 + 1e-3


@pytest.mark.parametrize("word", [0, WORD])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_normals_are_finite_for_the_smallest_and_the_largest_words(dtype, word, monkeypatch):
    monkeypatch.setattr(draws, "blocks", lambda data, number, index: torch.full((*index.shape, 4), word))
    x = draws.normal(fl.Key(0).data, 0, (4,), dtype)
    assert x.isfinite().all()
    assert x.abs().max() < 9


def test_the_two_normals_of_a_pair_are_independent():
    x = drawn("normal", dtype=torch.float64).view(-1, 2)
    first, second = x.unbind(-1)
    for a, b in ((first, second), (first**2, second**2), (first.abs(), second)):
        assert abs(torch.corrcoef(torch.stack((a, b)))[0, 1].item()) < 5 / len(x) ** 0.5


def test_bernoullis_come_as_often_as_they_should():
    for p in (0.001, 0.1, 0.5, 0.9):
        share = drawn("bernoulli", p=p).mean().item()
        assert abs(share - p) < 5 * (p * (1 - p) / N) ** 0.5


def test_every_bit_of_every_lane_is_set_half_the_time():
    words = blocks(torch.tensor([3, 4]), 5, torch.arange(N // 4))
    share = ((words[..., None] >> torch.arange(32)) & 1).double().mean(0)
    chi_squared = (((share - 0.5) ** 2) * 4 * len(words)).sum().item()
    assert abs(chi_squared - 128) < 5 * (2 * 128) ** 0.5


@pytest.mark.parametrize("other", [{"number": 1}, {"seed": 1}, {"seed": 2**32}, {"seed": 2**63}], ids=str)
def test_neighbouring_numbers_and_keys_are_not_correlated(other):
    a, b = drawn("uniform", dtype=torch.float32), drawn("uniform", dtype=torch.float32, **other)
    for shift in (0, 1, 4):
        correlation = torch.corrcoef(torch.stack((a, b.roll(shift))))[0, 1].item()
        assert abs(correlation) < 5 / N**0.5


def test_integers_and_permutations_favour_no_number():
    counts = torch.bincount(draws.integers(fl.Key(0).data, 0, (N,), 0, 10), minlength=10)
    assert abs(((counts - N / 10) ** 2).sum().item() / (N / 10) - 9) < 5 * 18**0.5
    first = torch.tensor([draws.permutation(fl.Key(seed).data, 0, 4)[0].item() for seed in range(2000)])
    counts = torch.bincount(first, minlength=4)
    assert abs(((counts - 500) ** 2).sum().item() / 500 - 3) < 5 * 6**0.5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning")  # torch's own
def test_inductor_draws_the_same_bits():
    kinds = ("uniform", "uniform64", "bernoulli", "integers", "permutation", "dropout")

    def several(data, number):
        return [KINDS[kind](data, number) for kind in kinds]

    teach_inductor()
    data, number = fl.Key(9).data, torch.tensor(4)
    graph = make_fx(several, tracing_mode="fake")(data, number)
    compiled = torch._inductor.compile(graph, [data, number])
    for found, wanted in zip(compiled(fl.Key(7).data, number), several(fl.Key(7).data, 4), strict=True):
        assert torch.equal(found, wanted)
