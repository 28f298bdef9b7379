"""What makes loaders of several ranks give the batches of one, as far as one process can tell."""

import random

import numpy as np
import pytest
import torch

import fluxlike as fl
from fluxlike.data.reading import read
from fluxlike.data.share import WHOLE, Share
from fluxlike.data.sources import source_of


class Late:
    """Draws for every seventh row alone, and only from one kind of generator."""

    def __init__(self, draw):
        self.draw, self.calls = draw, 0

    def __len__(self):
        return 40

    def __getitem__(self, i):
        self.calls += 1
        return i, float(self.draw()) if i % 7 == 6 else 0.0


DRAWS = {
    "torch": lambda: torch.rand(()),
    "numpy": lambda: np.random.rand(),
    "python": lambda: random.random(),
    "gauss": lambda: random.gauss(0, 1),
    "ours": lambda: fl.random.uniform(()),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_what_a_sample_draws_depends_on_no_other(kind):
    epoch = fl.DataLoader(Late(DRAWS[kind]), 20, key=fl.Key(0))._numbered_epoch(0)
    order = list(range(39, -1, -2))
    whole = read(source_of(Late(DRAWS[kind])), order, WHOLE, epoch, 3)
    drawn = {i: value for i, value in whole if value}
    assert set(drawn) == {13, 27}
    assert len(set(drawn.values())) == len(drawn)
    for pieces in (2, 4, 5):
        parts = [
            read(source_of(Late(DRAWS[kind])), order, Share(index, pieces), epoch, 3)
            for index in range(pieces)
        ]
        assert [row for part in parts for row in part] == whole


@pytest.mark.parametrize("kind", DRAWS)
def test_a_loader_that_has_found_out_that_samples_draw_gives_the_same(kind):
    loader = fl.DataLoader(Late(DRAWS[kind]), 8, shuffle=True, key=fl.Key(0))
    first = list(loader.epoch(0))
    again = list(loader.epoch(0))
    assert all(
        torch.equal(a, b) for x, y in zip(first, again, strict=True) for a, b in zip(x, y, strict=True)
    )


def test_a_data_set_that_draws_nothing_is_read_once():
    data = Late(lambda: 1.0)
    list(fl.DataLoader(data, 8, shuffle=True, key=fl.Key(0)))
    assert data.calls == 40


class Unlucky:
    """Raises now and then, by its draw."""

    def __len__(self):
        return 64

    def __getitem__(self, i):
        if torch.rand(()) < 1 / 3:
            raise OSError("not this time")
        return i


def test_an_error_that_a_draw_decides_is_that_of_the_samples_own_draw():
    epoch = fl.DataLoader(Unlucky(), 8, key=fl.Key(0))._numbered_epoch(0)

    def fate(rows, share=WHOLE):
        try:
            return len(read(source_of(Unlucky()), rows, share, epoch, 0))
        except Exception as error:
            return str(error)

    single = [fate(range(8), Share(i, 8)) for i in range(8)]
    failed = [i for i, found in enumerate(single) if found != 1]
    assert 0 < len(failed) < 8
    assert fate(range(8)) == f"observation {failed[0]}"


@pytest.mark.parametrize("n", [0, 1, 5, 8, 12])
@pytest.mark.parametrize("pieces", [1, 2, 3, 4])
def test_shares_are_equal_and_make_the_whole_or_are_the_whole(n, pieces):
    x = torch.arange(n)
    parts = [Share(index, pieces).narrowed(x) for index in range(pieces)]
    if n % pieces:
        assert all(torch.equal(part, x) for part in parts)
    else:
        assert {len(part) for part in parts} == {n // pieces}
        assert torch.equal(torch.cat(parts), x)
