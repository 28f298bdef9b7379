"""Batches are the data; an epoch is a function of its key and number, and goes on from anywhere."""

from __future__ import annotations

import json
import random
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_fixtures import Noisy, NoisyStream, Skipping, same, tripled
from hypothesis import given, settings
from hypothesis import strategies as st

import fluxlike as fl
from fluxlike.data import seeding
from fluxlike.data.mapped import mapobs

KINDS = ["arrays", "samples", "stream", "skipping"]


def source(kind, n):
    if kind == "arrays":
        return {"i": torch.arange(n), "x": np.arange(2.0 * n).reshape(n, 2)}
    if kind == "samples":
        return Noisy(n)
    return Skipping(n) if kind == "skipping" else NoisyStream(n)


def numbers(batch):
    """The observations of a batch."""
    while isinstance(batch, tuple):
        batch = batch[0]
    return (batch["i"] if isinstance(batch, dict) else batch).tolist()


@st.composite
def loaders(draw):
    kind = draw(st.sampled_from(KINDS))
    n, size = draw(st.integers(0, 20)), draw(st.integers(1, 6))
    buffers = st.sampled_from([False, 2, 5, 50])
    options = {
        "shuffle": draw(st.booleans() if kind in ("arrays", "samples") else buffers),
        "partial": draw(st.booleans()),
        "transform": draw(st.sampled_from([None, tripled])),
    }
    random_ = options["shuffle"] or options["transform"] or kind != "arrays"
    key = fl.Key(draw(st.integers(0, 3))) if random_ and draw(st.booleans()) else None
    return lambda: fl.DataLoader(source(kind, n), size, key=key, **options), n, size, options, key


@settings(deadline=None)
@given(loaders())
def test_the_batches_of_an_epoch_are_the_data(given_):
    make, n, size, options, _ = given_
    batches = [numbers(b) for b in make()]
    whole, rest = divmod(n, size)
    assert [len(b) for b in batches] == [size] * whole + [rest] * (rest > 0 and options["partial"])
    seen = [i for batch in batches for i in batch]
    if not options["shuffle"]:
        assert seen == list(range(len(seen)))
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(n))


@settings(deadline=None)
@given(loaders(), st.integers(0, 5), st.data())
def test_an_epoch_goes_on_from_any_batch_to_the_bit(given_, number, data):
    make, _, _, _, key = given_
    with fl.seeded(fl.Key(9) if key is None else fl.Key(8)):  # the key in scope counts only without one
        whole = list(make().epoch(number))
        start = data.draw(st.integers(0, len(whole)))
        other = make()
        list(other.epoch(number + 1))
        assert same(list(other.epoch(number, start=start)), whole[start:])


@settings(deadline=None)
@given(loaders(), st.integers(0, 2), st.data())
def test_a_saved_state_gives_the_rest_of_the_epoch_and_the_next_ones(given_, before, data):
    make, n, size, options, _ = given_
    torch.manual_seed(data.draw(st.integers(0, 3)))
    loader = make()
    for _ in range(before):
        list(loader)
    total = n // size if not options["partial"] else -(-n // size)
    stop = data.draw(st.integers(0, total))
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    state = json.loads(json.dumps(loader.state_dict()))
    rest, generator = list(batches), torch.get_rng_state()
    following = list(loader)

    torch.manual_seed(99)
    resumed = make()
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert same(list(resumed), rest)
    torch.set_rng_state(generator)
    assert same(list(resumed), following)


@settings(deadline=None)
@given(loaders())
def test_iterating_puts_every_global_generator_back(given_):
    make, _, _, _, key = given_
    loader = make()
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    batches = iter(loader)
    drawn = torch.get_rng_state()
    list(batches)
    after = torch.get_rng_state(), np.random.get_state(), random.getstate()
    assert torch.equal(after[0], drawn)
    assert key is None or torch.equal(after[0], before[0])
    assert repr(after[1:]) == repr(before[1:])


def test_a_normal_number_that_numpy_has_ready_is_kept():
    np.random.seed(3)
    expected = [np.random.randn() for _ in range(4)]
    np.random.seed(3)
    loader = fl.DataLoader(Noisy(4), 2, key=fl.Key(0))
    found = []
    for _ in loader:
        found += [np.random.randn()]
    assert found == expected[:2]


def test_what_is_drawn_between_batches_changes_none():
    loader = fl.DataLoader(Noisy(6), 2, shuffle=True, key=fl.Key(0))
    undisturbed = list(loader.epoch(0))
    disturbed = []
    for batch in loader.epoch(0):
        disturbed.append(batch)
        torch.rand(3), np.random.rand(3), random.random()
    assert same(disturbed, undisturbed)


def test_draws_differ_from_batch_to_batch_epoch_to_epoch_and_kind_to_kind():
    loader = fl.DataLoader(Noisy(4), 2, key=fl.Key(0))
    draws = [x.item() for e in range(2) for b in loader.epoch(e) for t in b["draws"] for x in t.flatten()]
    assert len(set(draws)) == len(draws)


def test_iterating_goes_from_epoch_to_epoch():
    loader = fl.DataLoader(torch.arange(50), 7, shuffle=True, key=fl.Key(0))
    for number in range(3):
        assert same(list(loader), list(loader.epoch(number)))


def test_epochs_of_a_key_in_scope_depend_on_nothing_else_there():
    loader = fl.DataLoader(torch.arange(50), 7, shuffle=True)
    with fl.seeded(fl.Key(1)):
        first = list(loader.epoch(2))
    with fl.seeded(fl.Key(1)):
        fl.random.uniform((3,))
        assert same(list(loader.epoch(2)), first)
    with fl.seeded(fl.Key(2)):
        assert not same(list(loader.epoch(2)), first)


def test_two_loaders_in_one_scope_have_orders_of_their_own():
    with fl.seeded(fl.Key(1)):
        a, b = (torch.cat(list(fl.DataLoader(torch.arange(50), 7, shuffle=True))) for _ in range(2))
    assert not torch.equal(a, b)


def test_another_number_or_key_is_another_order():
    orders = [
        torch.cat(list(fl.DataLoader(torch.arange(50), 7, shuffle=True, key=fl.Key(k)).epoch(e)))
        for k in range(3)
        for e in range(3)
    ]
    assert len({tuple(o.tolist()) for o in orders}) == 9


def test_a_broken_off_epoch_is_followed_by_the_next():
    loader = fl.DataLoader(torch.arange(50), 7, shuffle=True, key=fl.Key(0))
    next(iter(loader))
    assert loader.state_dict()["batch"] == 1
    assert same(list(loader), list(loader.epoch(1)))


def test_the_state_after_a_whole_epoch_is_the_start_of_the_next():
    loader = fl.DataLoader(torch.arange(4), 2)
    assert len(list(loader)) == 2
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 0)


def test_an_order_without_a_key_cannot_be_gone_on_with_by_number():
    loader = fl.DataLoader(torch.arange(9), 2, shuffle=True)
    with pytest.raises(ValueError, match=r"without a key every call draws another order; write .*key="):
        loader.epoch(0, start=1)


@pytest.mark.parametrize(("number", "start"), [(-1, 0), (0, -1)])
def test_epochs_and_batches_count_from_zero(number, start):
    with pytest.raises(ValueError, match="epochs and batches count from 0"):
        fl.DataLoader(torch.arange(9), 2).epoch(number, start)


def test_a_start_behind_the_end_is_an_error():
    with pytest.raises(ValueError, match="the data makes 5 batches"):
        fl.DataLoader(torch.arange(9), 2).epoch(0, start=6)
    with pytest.raises(ValueError, match="the stream ended after 5 batches, so it is not the one"):
        list(fl.DataLoader(NoisyStream(9), 2).epoch(0, start=6))


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (lambda: fl.DataLoader(torch.arange(8), 2, shuffle=True), "observations"),
        (lambda: fl.DataLoader(torch.arange(9), 3, shuffle=True), "batch_size"),
        (lambda: fl.DataLoader(torch.arange(9), 2), "shuffle"),
        (lambda: fl.DataLoader(torch.arange(9), 2, shuffle=True, partial=False), "partial"),
        (lambda: fl.DataLoader(torch.arange(9), 2, shuffle=True, key=fl.Key(0)), "key"),
        (lambda: fl.DataLoader(Noisy(9), 2, shuffle=True), "source"),
    ],
    ids=["observations", "batch_size", "shuffle", "partial", "key", "source"],
)
def test_a_state_of_another_loader_is_an_error_that_names_the_difference(other, name):
    state = fl.DataLoader(torch.arange(9), 2, shuffle=True).state_dict()
    with pytest.raises(ValueError, match=rf"load_state_dict: .*{name}="):
        other().load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [{"epoch": -1}, {"batch": "2"}, {"drawn_from": [1]}, {"drawn_from": "ab"}, {"more": 1}],
    ids=str,
)
def test_what_is_no_state_is_an_error(change):
    loader = fl.DataLoader(torch.arange(9), 2)
    with pytest.raises(ValueError, match="load_state_dict found"):
        loader.load_state_dict({**loader.state_dict(), **change})


def test_a_stream_that_can_skip_reads_nothing_of_what_is_left_out():
    class Counted(Skipping):
        def __iter__(self):
            read.append(self.first)
            return super().__iter__()

        def skip(self, n):
            return Counted(self.n, self.first + n)

    read = []
    loader = fl.DataLoader(Counted(20), 3, key=fl.Key(0))
    whole = list(loader.epoch(0))
    assert same(list(loader.epoch(0, start=4)), whole[4:])
    assert read == [0, 12]


class Drawn(Skipping):
    """A stream that can skip and draws its order as it is opened."""

    def __iter__(self):
        order = torch.randperm(self.n)[self.first :].tolist()
        return ((i, torch.rand(())) for i in order)

    def skip(self, n):
        return Drawn(self.n, self.first + n)


@settings(deadline=None)
@given(st.integers(0, 20), st.integers(1, 6), st.data())
def test_a_stream_that_can_skip_goes_on_in_the_order_that_it_drew(n, size, data):
    loader = fl.DataLoader(Drawn(n), size, key=fl.Key(0))
    whole = list(loader.epoch(2))
    assert sorted(i for batch in whole for i in batch[0].tolist()) == list(range(n))
    start = data.draw(st.integers(0, len(whole)))
    assert same(list(loader.epoch(2, start=start)), whole[start:])


class Slow(Noisy):
    """Noisy, which lets other threads run in its midst."""

    def __getitem__(self, i):
        first = super().__getitem__(i)
        time.sleep(0.001)
        return first, super().__getitem__(i)


@pytest.mark.parametrize("keyed", [True, False], ids=["beside others with keys", "beside others without"])
def test_each_of_several_threads_has_the_batches_it_has_alone(keyed):
    def epoch(i):
        key = fl.Key(i) if keyed or i == 0 else None
        return list(fl.DataLoader(Slow(12), 3, shuffle=True, key=key))

    checked = range(4) if keyed else range(1)
    alone = [epoch(i) for i in checked]
    before = torch.get_rng_state(), random.getstate()
    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(epoch, range(4)))
    assert all(same(together[i], alone[i]) for i in checked)
    assert random.getstate() == before[1]
    assert not keyed or torch.equal(torch.get_rng_state(), before[0])


def test_a_data_set_may_read_another_loader():
    inner = fl.DataLoader(Noisy(2), 2, key=fl.Key(1))
    (batch,) = fl.DataLoader(mapobs(lambda _: next(iter(inner.epoch(0))), range(2)), 2, key=fl.Key(0))
    (alone,) = inner.epoch(0)
    assert same(fl.fmap(lambda x: x[0], batch), alone)


def test_a_thread_that_waits_long_for_another_says_why(monkeypatch):
    found, warned = [], threading.Event()

    def warn(*args, **options):
        warnings.warn(*args, **options)
        warned.set()

    monkeypatch.setattr(seeding, "_PATIENCE", 0.05)
    monkeypatch.setattr(seeding, "warnings", SimpleNamespace(warn=warn))

    def read():
        with pytest.warns(RuntimeWarning, match=r"waited 0.05 s for another .* a key, and workers=1"):
            found.extend(fl.DataLoader(range(4), 2, key=fl.Key(0)))

    thread = threading.Thread(target=read)
    with seeding.alone():
        thread.start()
        warned.wait(60)
    thread.join()
    assert [b.tolist() for b in found] == [[0, 1], [2, 3]]


@settings(deadline=None, max_examples=30)
@given(n=st.integers(0, 40), size=st.integers(2, 50))
def test_a_buffer_draws_from_the_samples_ahead(n, size):
    loader = fl.DataLoader(Skipping(n), 4, shuffle=size, key=fl.Key(0))
    order = [i for batch, _ in loader for i in batch.tolist()]
    assert sorted(order) == list(range(n))
    assert all(i < place + size for place, i in enumerate(order))


def test_a_buffer_shuffles():
    loader = fl.DataLoader(Skipping(60), 60, shuffle=20, key=fl.Key(0))
    orders = [next(iter(loader.epoch(e)))[0].tolist() for e in range(2)]
    assert orders[0] != orders[1]
    assert sum(abs(a - b) for a, b in zip(orders[0], range(60), strict=True)) > 200
