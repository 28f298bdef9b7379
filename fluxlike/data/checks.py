"""What the arguments of a DataLoader must be."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from numbers import Number
from typing import Any

from fluxlike.data.order import order_key
from fluxlike.data.sources import Arrays, Source, Stream
from fluxlike.scope.key import Key

__all__ = ["checked_settings", "require_settings", "whole_number"]


def checked_settings(
    source: Source, batch_size: Any, shuffle: Any, collate: Any, workers: Any, key: Key | None, plain: bool
) -> tuple[int, bool | int, int]:
    """The numbers among the arguments, as Python's, if all go together.

    Args:
        plain: whether no code of the user's runs.

    Returns:
        ``batch_size``, ``shuffle`` and ``workers``.
    """
    size, processes = whole_number(batch_size), whole_number(workers)
    if size is None and not isinstance(batch_size, Number | str | None):
        raise ValueError(
            f"batch_size is a {type(batch_size).__name__}, and a whole number of at least 1 is wanted: write "
            "DataLoader((x, y), batch_size=32), with all arrays in one tuple"
        )
    if size is None or size < 1:
        raise ValueError(f"batch_size={batch_size!r}: write a whole number of at least 1")
    if processes is None or processes < 0:
        raise ValueError(f"workers={workers!r}: write how many processes, 0 for none")
    shuffle = _checked_shuffle(source, shuffle)
    if collate is not None and isinstance(source, Arrays):
        raise ValueError(
            "collate joins samples, and a tree of arrays is sliced into batches; write transform= for what "
            "is done with each batch, or give a data set of samples"
        )
    if isinstance(source, Stream) and processes > 1 and not source.can_shard:
        raise TypeError(
            f"workers={processes}: each would read the whole {type(source.data).__name__}; write workers=1, "
            "or give it a method shard(self, num_shards, index) that returns the stream for one of them"
        )
    order_key("DataLoader", key, bool(shuffle) or not plain)
    return size, shuffle, processes


def _checked_shuffle(source: Source, shuffle: Any) -> bool | int:
    if isinstance(source, Stream) and shuffle is not False:
        if shuffle is True:
            raise ValueError(
                "shuffle=True: a stream can't be put in order before it is read; write how many samples to "
                "draw the next one from, such as shuffle=1000"
            )
        buffer = whole_number(shuffle)
        if buffer is None or buffer < 2:
            raise ValueError(
                f"shuffle={shuffle!r}: for a stream write False, or how many samples to draw the next one "
                "from, such as shuffle=1000"
            )
        return buffer
    if not isinstance(shuffle, bool):
        raise ValueError(
            f"shuffle={shuffle!r}: write True or False; a number of samples to draw from is for streams"
        )
    return shuffle


def whole_number(x: Any, /) -> int | None:
    """A whole number of any kind, such as numpy's, as Python's; None for anything else, such as True."""
    try:
        return None if isinstance(x, bool) else operator.index(x)
    except TypeError:
        return None


def _is_whole(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


_WRITE = "it is no state of this loader; give load_state_dict what state_dict of one like it returned"


def require_settings(state: Any, wanted: dict[str, Any]) -> None:
    """Raise a ValueError unless a saved state is of a loader of these settings."""
    places = {"epoch", "batch", "drawn_from", "by_torch", "loader"}
    if not isinstance(state, Mapping) or set(state) != places or not isinstance(state["loader"], Mapping):
        there = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"load_state_dict found {there}, and wants {sorted(places)}: {_WRITE}")
    for name, value in wanted.items():
        found = state["loader"].get(name)
        if found != value:
            raise ValueError(
                f"load_state_dict: the state is of a loader with {name}={found!r}, this one has "
                f"{name}={value!r}, so its batches are others; make the loader as it was"
            )
    words, numbers = state["drawn_from"], (state["epoch"], state["batch"])
    pair = isinstance(words, (list, tuple)) and len(words) == 2 and all(map(_is_whole, words))
    if not all(_is_whole(x) and x >= 0 for x in numbers) or not (words is None or pair):
        raise ValueError(
            f"load_state_dict found epoch={numbers[0]!r}, batch={numbers[1]!r}, drawn_from={words!r}: "
            f"{_WRITE}"
        )
