"""A function of every observation, applied when the observation is asked for."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from fluxlike.data.observations import getobs, num_observations

__all__ = ["mapobs"]

T = TypeVar("T")


class _Mapped(Generic[T]):
    """See `mapobs`."""

    def __init__(self, f: Callable[[Any], T], data: Any) -> None:
        self.f, self.data, self._length = f, data, num_observations(data)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i: int) -> T:
        i = operator.index(i)
        if not -self._length <= i < self._length:
            raise IndexError(f"observation {i} of {self._length}")
        return self.f(getobs(self.data, i % self._length))

    def __repr__(self) -> str:
        return f"mapobs({getattr(self.f, '__qualname__', self.f)}, {self._length} observations)"


def mapobs(f: Callable[[Any], T], data: Any, /) -> _Mapped[T]:
    """A data set of what a function makes of each observation, computed when it is asked for.

    Args:
        f: the function of one observation: of one row of a tree of arrays, or of ``data[i]``.
        data: a tree of arrays, a list, or anything with a length and items.

    Returns:
        A data set with a length and items, for a `DataLoader`, `splitobs`, `kfolds` or another `mapobs`.

    Raises:
        TypeError, ValueError: as `num_observations`.

    Example:
        >>> import fluxlike as fl
        >>> from fluxlike.data.mapped import mapobs
        >>> lengths = mapobs(len, ["one", "three"])
        >>> len(lengths), lengths[1]
        (2, 5)
        >>> list(fl.DataLoader(lengths, batch_size=2))
        [tensor([3, 5])]
    """
    return _Mapped(f, data)
