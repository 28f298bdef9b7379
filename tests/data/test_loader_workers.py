"""Worker processes make the same batches, and what goes wrong in them is told."""

from __future__ import annotations

import gc
import multiprocessing
import os
import threading
from itertools import islice

import pytest
import torch
from data_fixtures import Noisy, NoisyStream, Shared, Skipping, Troubled, same, tripled
from torch.utils.data import get_worker_info

import fluxlike as fl
from fluxlike.data.seeding import alone

if len(os.sched_getaffinity(0)) < 2:
    pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("data", "options"),
    [
        (Noisy(11), {"shuffle": True, "transform": tripled}),
        ((torch.arange(11), torch.arange(11.0)), {"shuffle": True, "transform": tripled}),
        ((torch.arange(11), torch.arange(11.0)), {"partial": False, "transform": tripled}),
        (Noisy(0), {}),
    ],
    ids=["samples", "arrays", "arrays in order", "nothing"],
)
def test_batches_are_the_same_for_any_number_of_workers(data, options, workers):
    alone = fl.DataLoader(data, 2, key=fl.Key(3), **options)
    helped = fl.DataLoader(data, 2, key=fl.Key(3), workers=workers, **options)
    assert same(list(helped.epoch(1)), list(alone.epoch(1)))
    assert same(list(helped.epoch(1, start=len(alone) // 2)), list(alone.epoch(1))[len(alone) // 2 :])


@pytest.mark.parametrize("stream", [NoisyStream(11), Skipping(11)], ids=["read", "skipping"])
@pytest.mark.parametrize("shuffle", [False, 4])
def test_a_stream_is_the_same_in_a_worker(stream, shuffle):
    alone = fl.DataLoader(stream, 2, key=fl.Key(3), shuffle=shuffle)
    helped = fl.DataLoader(stream, 2, key=fl.Key(3), shuffle=shuffle, workers=1)
    assert same(list(helped.epoch(1)), list(alone.epoch(1)))
    assert same(list(helped.epoch(1, start=3)), list(alone.epoch(1))[3:])


def test_shards_are_read_in_turn_and_gone_on_with():
    loader = fl.DataLoader(Shared(11), 2, key=fl.Key(3), workers=2)
    whole = list(loader.epoch(0))
    assert [b["i"].tolist() for b in whole] == [[0, 2], [1, 3], [4, 6], [5, 7], [8, 10], [9]]
    for start in (1, 5, 6):
        assert same(list(loader.epoch(0, start=start)), whole[start:])


def test_a_shard_that_ends_early_keeps_the_order_of_the_others():
    class Uneven(Shared):
        def shard(self, num_shards, index):
            return [list(range(9)), [100]][index]

    loader = fl.DataLoader(Uneven(0), 2, key=fl.Key(3), workers=2)
    whole = [b.tolist() for b in loader.epoch(0)]
    assert whole == [[0, 1], [100], [2, 3], [4, 5], [6, 7], [8]]
    assert [b.tolist() for b in loader.epoch(0, start=4)] == whole[4:]


class SharedTwice(Shared):
    """A stream that also shares itself out among the workers of torch."""

    def __iter__(self):
        info = get_worker_info()
        n, i = (1, 0) if info is None else (info.num_workers, info.id)
        return islice(super().__iter__(), i, None, n)

    def shard(self, num_shards, index):
        return SharedTwice(len(self.data), num_shards, index)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_that_shares_itself_out_too_loses_nothing(workers):
    batches = fl.DataLoader(SharedTwice(11), 2, key=fl.Key(0), workers=workers)
    assert sorted(i for b in batches for i in b["i"].tolist()) == list(range(11))


def test_shards_of_an_order_that_is_drawn_are_parts_of_one_order():
    class Drawn(Shared):
        def __iter__(self):
            return iter(torch.randperm(len(self.data))[self.index :: self.shards].tolist())

        def shard(self, num_shards, index):
            return Drawn(len(self.data), num_shards, index)

    batches = list(fl.DataLoader(Drawn(11), 2, key=fl.Key(0), workers=2).epoch(1))
    assert sorted(torch.cat(batches).tolist()) == list(range(11))


def test_a_state_counts_what_was_given_and_not_what_was_made_ahead():
    loader = fl.DataLoader(Noisy(20), 2, shuffle=True, workers=2)
    batches = iter(loader)
    next(batches), next(batches)
    state = loader.state_dict()
    assert state["batch"] == 2
    again = fl.DataLoader(Noisy(20), 2, shuffle=True)
    again.load_state_dict(state)
    assert same(list(again), list(batches))


def test_workers_leave_the_global_generator_alone_and_draw_in_the_default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        state = torch.get_rng_state()
        (batch,) = fl.DataLoader([1.5, 2.5], 2, key=fl.Key(0), workers=1)
        assert torch.equal(torch.get_rng_state(), state)
        assert batch.dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")
def test_large_and_small_unusual_tensors_come_whole():
    batch = {
        "large": torch.randn(300, 300),
        "half": torch.randn(3, 5).bfloat16(),
        "empty": torch.zeros(0, 3),
        "expanded": torch.arange(3).expand(4, 3),
        "complex": torch.randn(3, dtype=torch.complex64).conj(),
        "negative": torch.randn(20_000, dtype=torch.complex64).conj().imag,
        "number": torch.tensor(3),
        "sparse": torch.eye(3).to_sparse(),
        "text": ["a", "b"],
    }
    (found,) = fl.DataLoader([0], 1, workers=1, key=fl.Key(0), transform=lambda _: batch)
    for name, x in batch.items():
        y = found[name]
        assert y == x if name == "text" else y.dtype == x.dtype and torch.equal(y.to_dense(), x.to_dense())
    found["half"].add_(1)  # memory of its own, that may be written to


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_names_the_epoch_the_batch_and_the_observation(workers):
    loader = fl.DataLoader(Troubled("raise"), 3, workers=workers)
    with pytest.raises(
        RuntimeError, match=r"epoch 4, batch 2: observation 7 raised KeyError: 'seven'"
    ) as error:
        list(loader.epoch(4))
    assert isinstance(error.value.__cause__, KeyError)
    assert workers == 0 or "In the worker process" in error.value.__cause__.__notes__[0]


def test_the_batches_before_an_error_are_given():
    batches = iter(fl.DataLoader(Troubled("raise"), 3, workers=2))
    assert [next(batches).tolist() for _ in range(2)] == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(RuntimeError, match="batch 2"):
        next(batches)


def test_an_error_that_cannot_be_sent_is_told_all_the_same():
    loader = fl.DataLoader(Troubled("unpicklable"), 3, workers=1)
    with pytest.raises(RuntimeError, match=r"observation 7 raised RuntimeError: Unpicklable: no pickle"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stage", ["collate", "transform"])
def test_an_error_of_collate_and_transform_is_named(stage, workers):
    def fail(_):
        raise ValueError("no")

    loader = fl.DataLoader(Noisy(4), 2, workers=workers, **{stage: fail})
    with pytest.raises(RuntimeError, match=rf"epoch 0, batch 0: {stage} raised ValueError: no"):
        list(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_stream_is_named(workers):
    class Broken(NoisyStream):
        def __iter__(self):
            yield from range(5)
            raise OSError("gone")

    loader = fl.DataLoader(Broken(0), 2, workers=workers)
    with pytest.raises(RuntimeError, match=r"batch 2: the stream, after 4 samples, raised OSError: gone"):
        list(loader)


def test_a_batch_that_cannot_be_sent_is_an_error_and_no_hang():
    loader = fl.DataLoader([0, 1], 2, workers=1, transform=lambda b: (b, lambda: 3))
    with pytest.raises(RuntimeError, match="sending the batch from its worker raised"):
        list(loader)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("kill", "was killed by SIGKILL, as the system does where memory runs out: load with fewer workers"),
        ("another signal", "was killed by SIGUSR1[.]"),
        ("exit", "ended with the exit code 3[.]"),
        pytest.param("leave", "ended with the exit code 0[.]", marks=pytest.mark.slow),
        pytest.param("interrupt", "ended with the exit code 0[.]", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_dies_is_an_error_that_says_how_to_go_on(how, told):
    before = set(multiprocessing.active_children())  # which other tests may have left
    loader = fl.DataLoader(Troubled(how), 2, workers=2)
    with pytest.raises(RuntimeError, match=rf"epoch 0, batch \d: it did not come.*{told}.* workers=0"):
        list(loader)
    assert set(multiprocessing.active_children()) <= before


class Large(Troubled):
    """Observations that are handed over as files, while their worker lives."""

    def __getitem__(self, i):
        return torch.full((20_000,), super().__getitem__(i))


# torch tells of a death by an error raised wherever this process stands, such as where it closes a socket
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_death_of_a_worker_with_large_tensors_is_told_every_time():
    for _ in range(20):
        with pytest.raises(RuntimeError, match=r"epoch 0, batch \d: it did not come.* was killed by SIGKILL"):
            list(fl.DataLoader(Large("kill"), 2, workers=2))


def test_the_death_of_a_worker_does_not_interrupt_the_users_code():
    before = set(multiprocessing.active_children())
    batches = iter(fl.DataLoader(Troubled("kill"), 1, workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    os.kill(worker.pid, 9)
    worker.join()
    total = sum(range(100_000))  # torch's own loader would raise here
    assert total
    with pytest.raises(RuntimeError, match=r"batch 1: it did not come.*was killed by SIGKILL"):
        list(batches)


def test_workers_end_when_the_user_breaks_off():
    before = set(multiprocessing.active_children())
    for batch in fl.DataLoader(Noisy(100), 2, workers=2):
        assert batch
        break
    gc.collect()
    assert set(multiprocessing.active_children()) <= before


def test_workers_serve_a_thread_that_is_not_the_main_one():
    found = []
    thread = threading.Thread(target=lambda: found.extend(fl.DataLoader(list(range(6)), 2, workers=1)))
    thread.start()
    thread.join()
    assert torch.cat(found).tolist() == list(range(6))


def test_workers_that_start_while_another_thread_makes_a_batch_do_not_wait_for_it():
    begun, done = threading.Event(), threading.Event()

    def hold():
        with alone():
            begun.set()
            done.wait(300)

    thread = threading.Thread(target=hold)
    thread.start()
    assert begun.wait(60)
    try:
        (batch,) = fl.DataLoader([1, 2], 2, workers=1, key=fl.Key(0))
        assert batch.tolist() == [1, 2]
        assert thread.is_alive()
    finally:
        done.set()
        thread.join()


def test_a_stream_that_cannot_be_shared_is_an_error_that_says_how():
    with pytest.raises(TypeError, match=r"workers=2: each would read the whole NoisyStream; .*shard\("):
        fl.DataLoader(NoisyStream(4), 2, workers=2)


def test_the_length_of_a_shared_stream_is_unknown():
    class Sized(Shared):
        def __len__(self):
            return 11

    assert len(fl.DataLoader(Sized(11), 2, workers=1)) == 6
    with pytest.raises(TypeError, match="the number of batches of this stream is unknown"):
        len(fl.DataLoader(Sized(11), 2, workers=2))


def test_another_default_device_is_none_of_the_workers():
    with torch.device("meta"):
        (batch,) = fl.DataLoader([1, 2], 2, workers=1, key=fl.Key(0))
    assert batch.tolist() == [1, 2]
