"""Keys, and the scope that draws from one."""

from __future__ import annotations

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

import fluxlike as fl
from fluxlike.scope.seeded import Draws, active, enter, leave

seeds = st.integers(0, 2**64 - 1)


def number(key):
    """A key as one number."""
    first, second = key.data.tolist()
    return first | second << 32


def draw():
    return fl.random.uniform((4,))


def under(key, f=draw):
    with fl.seeded(key):
        return f()


# Keys


@given(seeds)
def test_a_key_holds_the_two_words_of_its_seed_and_prints_as_it_is_written(seed):
    key = fl.Key(seed)
    assert number(key) == seed
    assert (key.data.dtype, key.data.shape) == (torch.int64, (2,))
    assert repr(key) == f"Key({seed})"


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3)], ids=repr)
def test_a_seed_may_be_a_numpy_number(seed):
    assert number(fl.Key(seed)) == 3


@pytest.mark.parametrize("seed", [1.0, "1", None, True, torch.tensor(1), [1], fl.Key(1)], ids=repr)
def test_a_seed_that_is_no_whole_number_is_an_error(seed):
    with pytest.raises(TypeError, match=r"^Key takes a whole number as the seed, found .*; write Key\(0\)"):
        fl.Key(seed)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_an_error(seed):
    with pytest.raises(ValueError, match=rf"^Key\({seed}\): write a seed from 0 to 2\*\*64 - 1"):
        fl.Key(seed)


@given(seeds, st.integers(0, 40), st.integers(0, 40))
def test_a_child_does_not_depend_on_how_many_there_are(seed, m, n):
    few, many = sorted((m, n))
    assert torch.equal(fl.Key(seed).split(few).data, fl.Key(seed).split(many).data[:few])
    assert fl.Key(seed).split(few).data.shape == (few, 2)


@given(seeds, st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_folding_in_numbers_is_folding_in_a_tensor_of_them(seed, numbers):
    key = fl.Key(seed)
    many = key.fold_in(torch.tensor(numbers))
    assert [number(k) for k in many] == [number(key.fold_in(n)) for n in numbers]
    assert number(key.fold_in(torch.tensor(numbers[0]))) == number(key.fold_in(numbers[0]))


@given(seeds)
def test_all_keys_made_of_one_differ_from_it_and_from_each_other(seed):
    key = fl.Key(seed)
    folded = key.fold_in(torch.tensor([-1, 0, 1, 2, 2**32, 2**62]))
    split = key.split(20)
    assert len({number(k) for k in (key, *split, *folded, *split[0].split(3))}) == 1 + 20 + 6 + 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.bool], ids=str)
def test_integers_of_any_dtype_are_folded_in_by_value(dtype):
    assert number(fl.Key(5).fold_in(torch.tensor(1, dtype=dtype))) == number(fl.Key(5).fold_in(1))


def test_several_keys_iterate_are_indexed_and_have_a_length():
    keys = fl.Key(1).split(3)
    a, b, c = keys
    assert len(keys) == 3
    assert [number(a), number(b), number(c)] == [number(keys[0]), number(keys[1]), number(keys[-1])]
    assert [number(k) for k in keys[1:]] == [number(b), number(c)]
    assert repr(keys) == "Key(int64[3, 2])"


@pytest.mark.parametrize("use", [len, iter, list, lambda k: k[0]])
def test_one_key_is_not_several(use):
    with pytest.raises(TypeError, match=r"this is one key, not several; write key\.split\(n\)"):
        use(fl.Key(1))


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda k: k.split(), "split"),
        (lambda k: k.fold_in(1), "fold_in"),
        (lambda k: under(k), "seeded"),
        (lambda k: fl.gradient(lambda x: x, 1.0, key=k), "gradient"),
        (lambda k: fl.DataLoader(torch.ones(3), shuffle=True, key=k), "DataLoader"),
        (lambda k: fl.splitobs(torch.ones(3), 0.5, shuffle=True, key=k), "splitobs"),
    ],
)
def test_several_keys_where_one_is_wanted_are_an_error(use, name):
    with pytest.raises(
        ValueError, match=f"{name} takes one key, and these are 3 keys; take one, such as keys"
    ):
        use(fl.Key(1).split(3))


@pytest.mark.parametrize("i", [1.0, "1", None, True, torch.tensor(1.0)], ids=repr)
def test_folding_in_what_is_no_whole_number_is_an_error(i):
    with pytest.raises(TypeError, match=r"fold_in takes .*, found (a tensor of torch.float32|\w+)"):
        fl.Key(1).fold_in(i)


@pytest.mark.parametrize("i", [2**63, -(2**63) - 1])
def test_folding_in_a_number_of_more_than_64_bits_is_an_error(i):
    with pytest.raises(ValueError, match="write a number of 64 bits"):
        fl.Key(1).fold_in(i)


def test_splitting_into_a_negative_number_or_a_half_is_an_error():
    with pytest.raises(ValueError, match=r"split\(-1\): write how many keys"):
        fl.Key(1).split(-1)
    with pytest.raises(
        TypeError, match=r"split takes how many keys, found float 0\.5; write key\.split\(2\)"
    ):
        fl.Key(1).split(0.5)


def test_a_key_does_not_change():
    key = fl.Key(1)
    with pytest.raises(AttributeError, match="a Key does not change"):
        key.data = torch.zeros(2)
    with pytest.raises(AttributeError, match="a Key does not change"):
        del key.data
    key.split(), key.fold_in(2), under(key)
    assert number(key) == 1


# Keys are trees


def test_a_key_is_a_node_with_one_integer_buffer():
    tree = {"key": fl.Key(3), "w": torch.ones(2)}
    assert [x.dtype for x in fl.fleaves(tree["key"])] == [torch.int64]
    assert fl.trainables(tree["key"]) == []
    grads = fl.gradient(lambda t: under(t["key"]).sum() * t["w"].sum(), tree)
    assert grads["key"].data is None
    assert repr(grads["key"]) == "Key(None)"
    new, _ = fl.update(fl.setup(fl.Descent(0.1), tree), tree, grads)
    assert new["key"].data is tree["key"].data


@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda k: pickle.loads(pickle.dumps(k)), fl.f16, fl.cpu]
)
def test_a_key_comes_through_copies_and_casts_as_it_was(again):
    assert number(again(fl.Key(2**63 + 5))) == 2**63 + 5
    assert type(again(fl.Key(1).split(2))) is fl.Key


def test_keys_are_saved_loaded_stacked_and_moved(tmp_path):
    fl.save(tmp_path / "key.safetensors", {"key": fl.Key(7)})
    assert number(fl.load(tmp_path / "key.safetensors", like={"key": fl.Key(0)})["key"]) == 7
    stacked = fl.stack([fl.Key(1), fl.Key(2)])
    assert [number(k) for k in stacked] == [1, 2]
    assert fl.to_device(fl.Key(1), "meta").data.is_meta


def test_a_key_is_made_in_main_memory_whatever_the_default_device():
    with torch.device("meta"):
        key = fl.Key(3)
        assert number(key.fold_in(1)) == number(fl.Key(3).fold_in(1))
        assert number(key.split()[1]) == number(fl.Key(3).split()[1])


def test_keys_are_mapped_by_vmap():
    keys = fl.Key(1).split(3)
    mapped = torch.func.vmap(lambda k: k.fold_in(2).split()[1])(keys)
    assert [number(k) for k in mapped] == [number(k.fold_in(2).split()[1]) for k in keys]
    folded = torch.func.vmap(fl.Key(1).fold_in)(torch.arange(3))
    assert [number(k) for k in folded] == [number(fl.Key(1).fold_in(i)) for i in range(3)]
    said = []
    torch.func.vmap(lambda k: (said.append(repr(k)), k)[1])(keys)
    assert said == ["Key(int64[2])"]


@pytest.mark.parametrize("piece", [1, 2, 1000])
def test_keys_mapped_along_with_numbers_are_folded_pair_by_pair(piece, monkeypatch):
    monkeypatch.setattr("fluxlike.scope.blocks._PIECE", piece)
    keys = fl.Key(1).split(3)
    for numbers in (torch.arange(3), torch.arange(12).view(3, 4), torch.arange(9).view(3, 3)):
        mapped = torch.func.vmap(lambda key, i: key.fold_in(i).data)(keys, numbers)
        alone = [key.fold_in(i).data for key, i in zip(keys, numbers, strict=True)]
        assert torch.equal(mapped, torch.stack(alone))


def test_keys_are_derived_in_a_trace():
    graph = make_fx(lambda k, i: k.fold_in(i).split(20)[3].fold_in(4), tracing_mode="fake")
    traced = graph(fl.Key(0), torch.tensor(0))
    for seed in (0, 5):
        wanted = fl.Key(seed).fold_in(7).split(20)[3].fold_in(4)
        assert number(traced(fl.Key(seed), torch.tensor(7))) == number(wanted)


# The scope


def test_draws_are_a_function_of_the_key():
    x = under(fl.Key(1))
    assert torch.equal(under(fl.Key(1)), x)
    assert not torch.equal(under(fl.Key(2)), x)


def test_each_draw_in_a_scope_is_another():
    with fl.seeded(fl.Key(1)):
        first, second = draw(), draw()
    assert not torch.equal(first, second)
    assert active() is None


def test_an_inner_key_takes_over_until_its_end():
    alone = under(fl.Key(1), lambda: (draw(), draw()))
    with fl.seeded(fl.Key(1)):
        first = draw()
        inner = under(fl.Key(2))
        second = draw()
    assert torch.equal(first, alone[0])
    assert torch.equal(second, alone[1])
    assert torch.equal(inner, under(fl.Key(2)))


def test_an_error_leaves_the_scope_as_it_was():
    def fail():
        torch.rand(3)
        raise KeyError("mine")

    state = torch.get_rng_state()
    with pytest.raises(KeyError, match="mine"):
        under(fl.Key(1), fail)
    assert active() is None
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("key", [3, 3.5, "3", torch.tensor(3)], ids=repr)
def test_what_is_no_key_is_an_error_that_says_what_to_write(key):
    write = "Key(3)" if key == 3 and type(key) is int else "Key(0)"
    with pytest.raises(TypeError, match="seeded takes a Key, found ") as error, fl.seeded(key):
        pass
    assert str(error.value).endswith(f"; write {write}")
    with pytest.raises(TypeError, match="gradient takes a Key, found "):
        fl.gradient(lambda x: x, 1.0, key=key)


def test_gradient_and_withgradient_put_a_key_in_scope():
    def loss(x):
        return (x * draw()).sum()

    x, wanted = torch.ones(4), under(fl.Key(1))
    assert torch.equal(fl.gradient(loss, x, key=fl.Key(1)), wanted)
    value, grad = fl.withgradient(loss, x, key=fl.Key(1))
    assert torch.equal(grad, wanted)
    torch.testing.assert_close(value, wanted.sum())
    assert active() is None


def test_an_inner_gradient_without_a_key_goes_on_with_the_draws_of_the_outer_one():
    def loss(x):
        first = draw()
        inner = fl.gradient(lambda y: (y * draw()).sum(), x)
        return (x * first).sum() + (x * inner).sum() * 10 + (x * draw()).sum() * 100

    first, second, third = under(fl.Key(1), lambda: (draw(), draw(), draw()))
    grad = fl.gradient(loss, torch.ones(4), key=fl.Key(1))
    torch.testing.assert_close(grad, first + 10 * second + 100 * third)


def test_an_inner_gradient_with_a_key_of_its_own_leaves_the_outer_draws_alone():
    def loss(x):
        first = draw()
        inner = fl.gradient(lambda y: (y * draw()).sum(), x, key=fl.Key(2))
        return (x * first).sum() + (x * inner).sum() * 10 + (x * draw()).sum() * 100

    first, second = under(fl.Key(1), lambda: (draw(), draw()))
    grad = fl.gradient(loss, torch.ones(4), key=fl.Key(1))
    torch.testing.assert_close(grad, first + 10 * under(fl.Key(2)) + 100 * second)


def test_a_key_among_the_arguments_is_only_data():
    torch.manual_seed(0)
    wanted = torch.rand(4)
    torch.manual_seed(0)
    assert torch.equal(fl.gradient(lambda x, key: (x * draw()).sum(), torch.ones(4), fl.Key(3)), wanted)


def test_a_scope_belongs_to_its_thread():
    found = []
    with fl.seeded(fl.Key(1)):
        thread = threading.Thread(target=lambda: found.append(active()))
        thread.start()
        thread.join()
    assert found == [None]


def test_threads_draw_from_their_own_keys_and_give_torchs_generator_back():
    state, barrier, found = torch.get_rng_state(), threading.Barrier(4), {}

    def work(seed):
        barrier.wait()
        for _ in range(20):
            with fl.seeded(fl.Key(seed)):
                found.setdefault(seed, []).append((draw(), torch.rand(2))[0])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(torch.get_rng_state(), state)
    for seed, drawn in found.items():
        assert all(torch.equal(x, under(fl.Key(seed))) for x in drawn)


# Draws, as other transforms use them


def entered(draws, f=draw):
    token = enter(draws)
    try:
        return f()
    finally:
        leave(token)


def test_marked_draws_are_drawn_again_after_a_rewind():
    with fl.seeded(fl.Key(1)):
        draw()
        mark = active().mark()
        second, third = draw(), draw()
        now = active().mark()
        active().rewind(mark)
        assert torch.equal(draw(), second)
        active().rewind(now)
        after = draw()
    four = under(fl.Key(1), lambda: [draw() for _ in range(4)])
    assert torch.equal(torch.stack([four[1], four[2], four[3]]), torch.stack([second, third, after]))


def test_folded_draws_are_those_of_the_folded_key_and_count_on_together():
    draws = Draws(fl.Key(1))
    first = entered(draws.folded(3))
    second = entered(draws.folded(3))
    assert torch.equal(first, under(fl.Key(1).fold_in(3)))
    assert torch.equal(second, under(fl.Key(1).fold_in(3), lambda: (draw(), draw()))[1])


def test_folded_by_a_mapped_index_each_member_draws_what_it_would_alone():
    draws = Draws(fl.Key(1))
    drawn = torch.func.vmap(lambda i: entered(draws.folded(i)))(torch.arange(3))
    assert torch.equal(drawn, torch.stack([under(fl.Key(1).fold_in(i)) for i in range(3)]))


def test_draws_entered_again_go_on_with_torchs_generator():
    with fl.seeded(fl.Key(1)):
        first = torch.rand(2)
        again = entered(active(), lambda: torch.rand(2))
        last = torch.rand(2)
    assert torch.equal(torch.cat((first, again, last)), under(fl.Key(1), lambda: torch.rand(6)))


def test_blocked_draws_raise_the_reason():
    blocked = Draws(fl.Key(1)).blocked("not here")
    for f in (draw, lambda: fl.random.permutation(3), lambda: entered(active().folded(1))):
        with pytest.raises(RuntimeError, match=r"^not here$"):
            entered(blocked, f)


def test_what_a_trace_draws_goes_on_where_the_scope_is():
    def traced(data, base):
        draws = Draws.from_inputs(data, base)
        result = entered(draws, lambda: (draw(), torch.rand(3), draw()))
        used.append(draws.mark())
        return result

    used: list[int] = []
    graph = make_fx(traced, tracing_mode="fake")(*Draws(fl.Key(0)).as_inputs())
    with fl.seeded(fl.Key(1)):
        draws = active()
        first, torchs, second = graph(*draws.as_inputs())
        draws.advance(used[0])
        third = draw()
        fourth, torchs_next, _ = graph(*draws.as_inputs())
    wanted = under(fl.Key(1), lambda: [draw() for _ in range(4)])
    assert torch.equal(torch.stack([first, second, third, fourth]), torch.stack(wanted))
    assert not torch.equal(torchs, torchs_next)


def test_a_draw_under_a_vmap_of_torchs_from_a_key_outside_is_an_error():
    with fl.seeded(fl.Key(1)), pytest.raises(RuntimeError, match=r"a random draw inside torch\.func\.vmap"):
        torch.func.vmap(lambda x: x + draw())(torch.ones(3, 4))
    with fl.seeded(fl.Key(1)):
        same = torch.func.vmap(lambda x: x + draw(), randomness="same")(torch.zeros(3, 4))
    assert torch.equal(same, under(fl.Key(1)).expand(3, 4))


def test_a_draw_inside_functorchs_gradient_is_the_scopes():
    with fl.seeded(fl.Key(1)):
        grad = torch.func.grad(lambda x: (x * draw()).sum())(torch.ones(4))
    assert torch.equal(grad, under(fl.Key(1)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_bits():
    kinds = {
        "uniform": lambda d: fl.random.uniform((1001,), device=d),
        "uniform64": lambda d: fl.random.uniform((1001,), dtype=torch.float64, device=d),
        "bernoulli": lambda d: fl.random.bernoulli((1001,), 0.3, device=d),
        "integers": lambda d: fl.random.integers((1001,), 0, 77, device=d),
        "permutation": lambda d: fl.random.permutation(1001, device=d),
    }
    for draw_on in kinds.values():
        for key in (fl.Key(1), fl.to_device(fl.Key(1), "cuda")):
            assert torch.equal(
                under(key, lambda: draw_on("cuda")).cpu(), under(fl.Key(1), lambda: draw_on("cpu"))
            )
    state = torch.cuda.get_rng_state()
    with fl.seeded(fl.Key(1)):
        first = torch.rand(3, device="cuda")
    with fl.seeded(fl.Key(1)):
        assert torch.equal(torch.rand(3, device="cuda"), first)
    assert torch.equal(torch.cuda.get_rng_state(), state)
