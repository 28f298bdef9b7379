"""Which checkpoints are kept: the newest, and the best by a score."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fluxlike.learning.checkpoints.entry import Entry
from fluxlike.learning.direction import Mode

__all__ = ["kept", "ranked"]


def ranked(entries: Iterable[Entry], by: str | None, mode: Mode, /) -> list[Entry]:
    """Checkpoints from the best to the worst.

    Of equal scores the earlier is better: nothing was gained since. What has no score, or NaN, is worse than
    any number, and the later of it is better; so it is without `by`.
    """

    def worth(entry: Entry) -> tuple[bool, float, int]:
        score = math.nan if by is None else entry.scores.get(by, math.nan)
        if math.isnan(score):
            return True, 0.0, -entry.step
        return False, -score if mode == "max" else score, entry.step

    return sorted(entries, key=worth)


def kept(entries: Iterable[Entry], keep: int | None, by: str | None, mode: Mode, /) -> list[Entry]:
    """The best `keep` of the checkpoints (all for None), and the newest, in the order of steps."""
    entries = sorted(entries, key=lambda entry: entry.step)
    best = {entry.step for entry in ranked(entries, by, mode)[:keep]}
    return [entry for entry in entries if entry.step in best or entry is entries[-1]]
