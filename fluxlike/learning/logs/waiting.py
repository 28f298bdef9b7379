"""Scalars that wait to be read from their device together."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from torch import Tensor

from fluxlike.learning.metrics.host import Number, Scalar, host_numbers

__all__ = ["Waiting"]

_MANY = 256  # rows
_LONG = 2.0  # seconds


class Waiting:
    """Rows of scalars by step, in the order in which they came.

    Example:
        >>> import torch
        >>> waiting = Waiting()
        >>> waiting.add({"loss": torch.tensor(0.5)}, 1), waiting.add({"loss": torch.tensor(0.25)}, 2)
        (False, False)
        >>> waiting.take()
        [(1, {'loss': 0.5}), (2, {'loss': 0.25})]
    """

    def __init__(self) -> None:
        self._rows: list[tuple[int, dict[str, Scalar]]] = []
        self._begun = 0.0

    def last(self, otherwise: int | None, /) -> int | None:
        """The step of the last row; something else if there is none."""
        return self._rows[-1][0] if self._rows else otherwise

    def add(self, values: Mapping[str, Scalar], step: int, /) -> bool:
        """Add a row, and say whether it is time to write."""
        if not self._rows:
            self._begun = monotonic()
        kept = {name: v.detach() if isinstance(v, Tensor) else v for name, v in values.items()}
        self._rows.append((step, kept))
        return len(self._rows) >= _MANY or monotonic() - self._begun > _LONG

    def take(self) -> list[tuple[int, dict[str, Number]]]:
        """All rows, with numbers; none of them waits any more."""
        rows, self._rows = self._rows, []
        numbers = iter(host_numbers([value for _, values in rows for value in values.values()]))
        return [(step, {name: next(numbers) for name in values}) for step, values in rows]
