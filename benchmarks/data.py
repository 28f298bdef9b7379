"""The DataLoader, shuffled, against torch's with its default collate: a whole epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """A data set of the map style, whose samples are rows of two tensors."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i], self.y[i]


def _drain(loader):
    def epoch():
        for _ in loader:
            pass

    return epoch


def rows() -> Iterator[Row]:
    """Rows of arrays, one a size of observation and number of threads; and of a data set."""
    for threads in at_threads(1, 2):
        for features, target in ((784, 1 / 4), (8, 1 / 20)):
            x, y = torch.randn(12_800, features), torch.randint(10, (12_800,))
            ours = fl.DataLoader((x, y), batch_size=128, shuffle=True)
            theirs = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
            times = in_turns(_drain(ours), _drain(theirs), rounds=9)
            name = f"DataLoader, shuffled, 128 rows of {features} floats"
            yield Row(name, "torch's DataLoader", threads, *times, target)
        yield _data_set(threads, workers=0)
        yield _data_set(threads, workers=1)


def _data_set(threads: int, workers: int) -> Row:
    data = Pairs(torch.randn(12_800, 784), torch.randint(10, (12_800,)))
    ours = fl.DataLoader(data, batch_size=128, shuffle=True, workers=workers)
    theirs = DataLoader(data, batch_size=128, shuffle=True, num_workers=workers)
    times = in_turns(_drain(ours), _drain(theirs), rounds=9)
    name = f"DataLoader, a data set of tensors, {workers} worker{'s' * (workers != 1)}"
    return Row(name, "torch's DataLoader", threads, *times, None)
