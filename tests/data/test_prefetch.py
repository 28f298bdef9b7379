"""Batches on their way to a device."""

from __future__ import annotations

import pytest
import torch
from data_fixtures import Noisy

import fluxlike as fl
from fluxlike.data.prefetch import one_ahead


def counting(n, log, fail_at=None):
    for i in range(n):
        if i == fail_at:
            raise ValueError("no")
        log.append(i)
        yield i


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_all_items_come_in_order(n):
    assert list(one_ahead(counting(n, []))) == list(range(n))


def test_the_next_item_is_begun_before_one_is_given():
    log = []
    items = one_ahead(counting(5, log))
    assert (next(items), log) == (0, [0, 1])
    assert (next(items), log) == (1, [0, 1, 2])


def test_an_error_comes_in_its_turn():
    items = one_ahead(counting(5, [], fail_at=3))
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="no"):
        next(items)


def test_what_it_reads_from_is_closed_when_broken_off():
    closed = []

    def items():
        try:
            yield from range(5)
        finally:
            closed.append(True)

    ahead = one_ahead(items())
    next(ahead)
    ahead.close()
    del ahead
    assert closed


def test_batches_are_on_the_device():
    loader = fl.DataLoader((torch.ones(4, 2), ["n", torch.ones(4)][1]), 2, device="meta")
    assert all(x.device.type == "meta" for batch in loader for x in batch)
    assert [b.tolist() for b in fl.DataLoader(torch.arange(4), 2, device="cpu")] == [[0, 1], [2, 3]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_cuda_are_those_of_the_cpu(workers):
    options = {"batch_size": 64, "shuffle": True, "key": fl.Key(0)}
    data = (torch.randn(2000, 512), torch.arange(2000))
    samples = torch.utils.data.TensorDataset(*data)
    for source in (data, samples, Noisy(200)):
        here = list(fl.DataLoader(source, **options))
        there = []
        for batch in fl.DataLoader(source, device="cuda", workers=workers, **options):
            assert fl.get_device(batch).type == "cuda"
            there.append(fl.cpu(fl.fmap(lambda x: x * 1, batch)))
            torch.randn(1000, 1000, device="cuda") @ torch.randn(1000, 1000, device="cuda")
        for a, b in zip(here, there, strict=True):
            assert all(map(torch.equal, fl.fleaves(a), fl.fleaves(b)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_the_state_of_a_loader_to_cuda_counts_what_was_given():
    loader = fl.DataLoader(torch.arange(20), 2, shuffle=True, device="cuda")
    batches = iter(loader)
    next(batches)
    state = loader.state_dict()
    assert state["batch"] == 1
    again = fl.DataLoader(torch.arange(20), 2, shuffle=True)
    again.load_state_dict(state)
    assert all(torch.equal(a, b.cpu()) for a, b in zip(again, batches, strict=True))
