"""How time and memory grow with the size of the work, and where they grow faster than the work.

Between two sizes of a curve, the exponent is that of ``cost = work^exponent``: the slope of the line between
the two on logarithmic axes. All sizes of a curve, and the peer at all sizes, are measured in turns, several
times over, so that a machine that slows down slows all of them; a cost is called steep where the exponent is
above 1.15 in every repeat. Fixed costs make an exponent smaller; what no longer fits a cache makes it larger,
for the peer as well.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from benchmarks.harness import at_threads, in_turns, seconds
from benchmarks.scaling_cases import CURVES, Curve

LIMIT = 1.15  # the exponent above which a cost grows faster than its work
REPEATS, ROUNDS, BUDGET = 5, 5, 2.0  # of each curve; turns in a repeat, and seconds a repeat

HEADER = (
    f"{'what':<38} {'size':>12}  {'work':>14}  {'cost':>9}  {'exponent':>8}  {'at least':>8}  {'peer':>9}"
    f"  {'exponent':>8}"
)


@dataclass(frozen=True)
class Point:
    """One size of a curve.

    Attributes:
        name: of the curve.
        axis: what is varied.
        size: its value.
        work: how much there is to do; a cost in proportion to it has exponent 1.
        work_unit: its unit.
        threads: of torch's.
        cost: the median of the repeats.
        unit: of the cost, "s" or "MiB".
        exponent: from the last size to this one, the median of the repeats; None for the first size, or
            where a cost is nothing.
        least: the smallest exponent of the repeats.
        peer: what torch takes for the same, or None.
        peer_exponent: its exponent.
    """

    name: str
    axis: str
    size: int
    work: float
    work_unit: str
    threads: int
    cost: float
    unit: str
    exponent: float | None
    least: float | None
    peer: float | None
    peer_exponent: float | None

    @property
    def steep(self) -> bool:
        """Whether the cost grew faster than the work."""
        return self.least is not None and self.least > LIMIT

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "steep": self.steep}

    def __str__(self) -> str:
        write = _signed_seconds if self.unit == "s" else "{:.3f} MiB".format
        slopes = (self.exponent, self.least, self.peer_exponent)
        mine, least, others = (f"{x:.2f}" if x is not None else "" for x in slopes)
        peer = write(self.peer) if self.peer is not None else ""
        work, size = f"{self.work:.3g} {self.work_unit}", f"{self.axis} {self.size}"
        row = f"{self.name:<38} {size:>12}  {work:>14}  {write(self.cost):>9}  {mine:>8}  {least:>8}"
        row = f"{row}  {peer:>9}  {others:>8}"
        if not self.steep:
            return row
        return f"{row}  STEEP{', as the peer' if (self.peer_exponent or 0) > LIMIT else ''}"


def _signed_seconds(t: float) -> str:
    """A time, which the noise of a difference may make negative."""
    return seconds(t) if t >= 0 else f"-{seconds(-t)}"


def exponents(work: Sequence[float], cost: Sequence[float]) -> list[float | None]:
    """The exponent between each size and the one before; None where work or cost is nothing.

    Work that stands still counts as growing by a twentieth, so that a cost that stands still too has exponent
    0, and one that grows by more is steep.

    Args:
        work: of each size.
        cost: of each size.
    """
    found: list[float | None] = [None]
    for i in range(1, len(cost)):
        (a, b), (v, w) = cost[i - 1 : i + 1], work[i - 1 : i + 1]
        known = min(a, b, v, w) > 0
        found.append(math.log(b / a) / math.log(max(w / v, 1.05)) if known else None)
    return found


def points(
    curve: Curve,
    quantity: str,
    unit: str,
    work: tuple[Sequence[float], str],
    costs: Sequence[Sequence[float]],
    peers: Sequence[Sequence[float]] = (),
) -> Iterator[Point]:
    """The points of a curve.

    Args:
        curve: what was measured.
        quantity: what of it.
        unit: of the costs.
        work: of each size, and its unit.
        costs: for each repeat, the cost of each size.
        peers: the same of the peer. (default: none)
    """
    slopes = [exponents(work[0], repeat) for repeat in costs]
    peer_slopes = [exponents(work[0], repeat) for repeat in peers]
    for i, size in enumerate(curve.sizes):
        here = [slope[i] for slope in slopes]
        known = [s for s in here if s is not None]
        whole = len(known) == len(here)
        yield Point(
            name=f"{curve.name}, {quantity}",
            axis=curve.axis,
            size=size,
            work=work[0][i],
            work_unit=work[1],
            threads=1,
            cost=statistics.median(repeat[i] for repeat in costs),
            unit=unit,
            exponent=statistics.median(known) if whole else None,
            least=min(known) if whole else None,
            peer=statistics.median(repeat[i] for repeat in peers) if peers else None,
            peer_exponent=_median([slope[i] for slope in peer_slopes]),
        )


def _median(found: Sequence[float | None]) -> float | None:
    known = [x for x in found if x is not None]
    return statistics.median(known) if known and len(known) == len(found) else None


def measured(curve: Curve) -> Iterator[Point]:
    """All that is measured of a curve: time, what it takes beyond the peer, memory, and the first call."""
    cases = [curve.case(size) for size in curve.sizes]
    work = [case.work for case in cases], cases[0].unit
    calls = [case.ours for case in cases] + [case.theirs for case in cases if case.theirs is not None]
    times = [in_turns(*calls, rounds=ROUNDS, budget=BUDGET) for _ in range(REPEATS)]
    n = len(cases)
    ours, theirs = [t[:n] for t in times], [t[n:] for t in times if t[n:]]
    yield from points(curve, "time", "s", work, ours, theirs)
    if curve.beyond:
        differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(ours, theirs, strict=True)]
        yield from points(curve, "beyond torch", "s", work, differences)
    memory = [case.memory for case in cases if case.memory is not None]
    if memory:
        against = [m.work for m in memory], memory[0].unit
        yield from points(curve, "memory", "MiB", against, [[m.cost / 2**20 for m in memory]])
    first = [case.first for case in cases if case.first]
    if first:
        yield from points(curve, "first call", "s", work, list(zip(*first, strict=True)))


def rows() -> Iterator[Point]:
    """The points of all curves, at one thread: small kernels stall with more."""
    for _ in at_threads(1):
        for curve in CURVES:
            yield from measured(curve)
