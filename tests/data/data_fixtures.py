"""Data sets and streams that the tests of the loader read."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import torch


class Noisy(torch.utils.data.Dataset):
    """Observation i is i, and a draw of each kind."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        import fluxlike as fl

        draws = torch.rand(2), np.random.rand(2), random.random(), fl.random.uniform((2,))
        return {"i": i, "draws": draws}


class NoisyStream:
    """Noisy, one after the other."""

    def __init__(self, n, shards=1, index=0):
        self.data, self.shards, self.index = Noisy(n), shards, index

    def __iter__(self):
        return (self.data[i] for i in range(self.index, len(self.data), self.shards))


class Shared(NoisyStream):
    """A stream that says how several workers read it."""

    def shard(self, num_shards, index):
        return Shared(len(self.data), num_shards, index)


class Skipping(torch.utils.data.IterableDataset):
    """A stream that leaves samples out without reading them."""

    def __init__(self, n, first=0):
        self.n, self.first = n, first

    def __iter__(self):
        for i in range(self.first, self.n):
            yield i, torch.rand(())

    def skip(self, n):
        return Skipping(self.n, self.first + n)


class Troubled(torch.utils.data.Dataset):
    """Observation 7 goes wrong."""

    def __init__(self, how):
        self.how = how

    def __len__(self):
        return 10

    def __getitem__(self, i):
        if i == 7 and self.how == "raise":
            raise KeyError("seven")
        if i == 7 and self.how == "unpicklable":
            raise Unpicklable(lambda: 7)
        if i == 7 and self.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if i == 7 and self.how == "another signal":
            os.kill(os.getpid(), signal.SIGUSR1)
        if i == 7 and self.how == "interrupt":
            raise KeyboardInterrupt
        if i == 7 and self.how == "exit":
            os._exit(3)
        if i == 7 and self.how == "leave":
            os._exit(0)
        return i


class Unpicklable(Exception):
    def __init__(self, what):
        super().__init__("no pickle")
        self.what = what


def tripled(batch):
    """A transform that draws."""
    return batch, torch.rand(3), np.random.rand(), random.random()


def same(a, b):
    """Whether two trees of tensors and numbers are equal to the bit."""
    import fluxlike as fl

    return repr(fl.fleaves(a, leaves="all")) == repr(fl.fleaves(b, leaves="all")) and all(
        torch.equal(x, y) for x, y in zip(fl.fleaves(a), fl.fleaves(b), strict=True)
    )
