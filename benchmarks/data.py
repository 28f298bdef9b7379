"""The in-memory DataLoader, shuffled, against torch's with its default collate: a whole epoch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, TensorDataset

import fluxlike as fl
from benchmarks.harness import Row, at_threads, in_turns


def _drain(loader):
    def epoch():
        for _ in loader:
            pass

    return epoch


def rows() -> Iterator[Row]:
    """One row a size of observation and number of threads."""
    for threads in at_threads(1, 2):
        for features, target in ((784, 1 / 4), (8, 1 / 20)):
            x, y = torch.randn(12_800, features), torch.randint(10, (12_800,))
            ours = fl.DataLoader((x, y), batch_size=128, shuffle=True)
            theirs = DataLoader(TensorDataset(x, y), batch_size=128, shuffle=True)
            times = in_turns(_drain(ours), _drain(theirs), rounds=9)
            name = f"DataLoader, shuffled, 128 rows of {features} floats"
            yield Row(name, "torch's DataLoader", threads, *times, target)
