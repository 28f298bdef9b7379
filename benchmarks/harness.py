"""Timing in turns: A B A B …, medians, and the ratio of the medians."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One comparison, in seconds a call (or another `unit`); `target` is the largest ratio allowed."""

    name: str
    peer: str
    threads: int
    ours: float
    theirs: float
    target: float | None
    unit: str = "s"

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "ratio": self.ratio}

    def __str__(self) -> str:
        write = seconds if self.unit == "s" else "{:.2f}".format
        ours, theirs = write(self.ours), write(self.theirs)
        row = f"{self.name:<44} {self.peer:<34} {self.threads:>7}  {ours:>9} {theirs:>9}  {self.ratio:>7.3f}"
        if self.target is None:
            return row
        return f"{row}  {self.target:>6.3g}  {'met' if self.ratio <= self.target else 'MISSED'}"


HEADER = (
    f"{'what':<44} {'against':<34} {'threads':>7}  {'ours':>9} {'theirs':>9}  {'ratio':>7}  {'target':>6}"
)


def seconds(t: float) -> str:
    """A time with a unit that suits it."""
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if t * factor >= 1:
            return f"{t * factor:.3g} {unit}"
    return f"{t * 1e9:.3g} ns"


def in_turns(*calls: Callable[[], object], budget: float = 4.0, rounds: int = 15) -> list[float]:
    """The median time of one call of each function, measured in turns.

    Args:
        calls: the functions.
        budget: seconds for all of it, about.
        rounds: how many times each gets its turn.
    """
    for call in calls:
        call(), call()
    once = [_time(call, 1) for call in calls]
    share = budget / (rounds * len(calls))
    numbers = [max(1, round(share / t)) for t in once]
    taken: list[list[float]] = [[] for _ in calls]
    gc.collect()
    for _ in range(rounds):
        for call, number, times in zip(calls, numbers, taken, strict=True):
            times.append(_time(call, number))
    return [statistics.median(times) for times in taken]


def _time(call: Callable[[], object], number: int) -> float:
    start = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - start) / number


def at_threads(*counts: int) -> Iterator[int]:
    """Run the loop's body at each number of torch's threads, then set the old number again."""
    before = torch.get_num_threads()
    try:
        for count in counts:
            torch.set_num_threads(count)
            yield count
    finally:
        torch.set_num_threads(before)
