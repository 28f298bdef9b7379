"""What reading one file may cost, whatever it says of itself."""

from __future__ import annotations

from bisect import bisect_left

from fluxlike.bridges.foreign_files.faults import allowance

__all__ = ["Meter"]


class Meter:
    """The work that a file may ask for, by its size, and which of its bytes were read as something."""

    def __init__(self, size: int) -> None:
        self._size, self._left = size, allowance(size)
        self._claims: list[tuple[int, int]] = []

    def charge(self, n: int, text: str = "") -> None:
        """Refuse more bytes looked at, decoded or copied than a file of this size has use for.

        Args:
            n: how many.
            text: what takes them, if that is an array. (default: "")
        """
        self._left -= n
        if self._left >= 0:
            return
        if not text:
            raise ValueError(f"it takes more work to read than a model's state in {self._size} bytes")
        raise ValueError(
            f"{text}, and a file of {self._size} bytes is not taken to hold more than "
            f"{allowance(self._size)} bytes; if it is yours, do not compress it"
        )

    def claim(self, start: int, n: int) -> None:
        """Refuse bytes that were read before, as the same or as something else."""
        at = bisect_left(self._claims, (start, 0))
        before, after = self._claims[at - 1 : at], self._claims[at : at + 1]
        if any(end > start for _, end in before if at) or any(first < start + n for first, _ in after):
            raise ValueError(f"the {n} bytes at {start} are two things at once")
        if n:
            self._claims.insert(at, (start, start + n))
            self.charge(n)
