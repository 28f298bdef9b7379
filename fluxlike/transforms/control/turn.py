"""One turn of a loop: the user's function in the scope of that turn, and the check of its carry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fluxlike.scope import seeded
from fluxlike.transforms.control.form import Form

__all__ = ["Turn"]


class Turn:
    """One turn of a loop: the function, its carry, and the draws that each turn starts with.

    Attributes:
        carry: the form of the carry.
        leaves: those of the carry that the last turn returned.
        drawn: how much it drew.
    """

    leaves: list[Any]

    def __init__(self, f: Callable[[Any, Any], Any], carry: Form) -> None:
        self._f, self.carry = f, carry
        self._draws = seeded.active()
        self._mark = 0 if self._draws is None else self._draws.mark()
        self.drawn = 0

    def __call__(self, carry: Any, x: Any, i: int | Tensor) -> tuple[Any, Any]:
        """Run the function, as turn i."""
        token = None
        if self._draws is not None:
            self._draws.rewind(self._mark)
            token = seeded.enter(self._draws.folded(i))
        try:
            pair = self._f(carry, x)
        finally:
            if token is not None:
                seeded.leave(token)
        if self._draws is not None:
            self.drawn = self._draws.mark() - self._mark
        if not isinstance(pair, tuple) or len(pair) != 2:
            found = f"a tuple of {len(pair)}" if isinstance(pair, tuple) else f"a {_kind(pair)}"
            raise TypeError(
                f"scan: the function returns the next carry and what to stack, found {found}; write "
                "return carry, y, or return carry, None"
            )
        self.leaves = self.carry.check(pair[0], "the carry that scan's function returned", _CARRY)
        return pair

    def finish(self, drawn: int) -> None:
        """Count what all turns drew."""
        if self._draws is not None:
            self._draws.rewind(self._mark + drawn)


def _kind(x: Any) -> str:
    return "Tensor" if isinstance(x, Tensor) else type(x).__name__  # traces have tensors of other classes


_CARRY = (
    "a carry stays what it is from turn to turn: cast or reshape it, and make a number that changes a tensor"
)
