"""What a checkpoint of another framework is: nested dicts and lists of arrays, under their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from torch import Tensor

__all__ = ["arrays_in_a_row", "holds_arrays", "is_array", "one_collection", "with_nesting"]


def is_array(x: Any, /) -> bool:
    """Whether a value of a checkpoint is an array of parameters; single numbers are settings."""
    return isinstance(x, Tensor) or (
        hasattr(x, "shape") and hasattr(x, "dtype") and not isinstance(x, np.generic)
    )


def holds_arrays(x: Any, /) -> bool:
    """Whether there is an array of one axis or more in a part of a checkpoint."""
    if isinstance(x, Mapping):
        return any(map(holds_arrays, x.values()))
    if isinstance(x, (list, tuple)):
        return any(map(holds_arrays, x))
    return is_array(x) and x.ndim > 0


def arrays_in_a_row(state: Any, /) -> list[Any]:
    """The arrays of lists in lists."""
    if not isinstance(state, (list, tuple)):
        return [state] if holds_arrays(state) else []
    return [x for inner in state for x in arrays_in_a_row(inner)]


def with_nesting(state: Any, /) -> Any:
    """A checkpoint whose names with slashes, ``conv2d/kernel``, are nested dicts.

    Raises:
        TypeError: it is no dict, list or array.
        ValueError: two of its entries have one name, or it holds itself.
    """
    if not isinstance(state, (Mapping, list, tuple)) and not is_array(state):
        raise TypeError(
            f"a state is nested dicts or lists of arrays, such as variables['params'] or "
            f"keras_model.get_weights(); found {'None' if state is None else f'a {type(state).__name__}'}"
        )
    return _nested(state, "", ())


def _nested(state: Any, place: str, above: tuple[int, ...]) -> Any:
    if not isinstance(state, (Mapping, list, tuple)):
        return state
    if id(state) in above:
        raise ValueError(f"the state holds itself at {place}")
    above = (*above, id(state))
    if not isinstance(state, Mapping):
        return [_nested(x, f"{place}[{i}]", above) for i, x in enumerate(state)]
    nested: dict[Any, Any] = {}
    for key, value in state.items():
        first, *names = key.strip("/").split("/") if isinstance(key, str) else (key,)
        inner = _nested(value, f"{place}[{key!r}]", above)
        for name in reversed(names):
            inner = {name: inner}
        _join(nested, first, inner, f"{place}[{first!r}]")
    return nested


def _join(into: dict[Any, Any], name: Any, value: Any, place: str) -> None:
    old = into.setdefault(name, value)
    if old is value:
        return
    if not isinstance(old, dict) or not isinstance(value, dict):
        raise ValueError(f"the state has two entries for {place}; which of them it is can't be told")
    into[name] = joined = dict(old)
    for key, x in value.items():
        _join(joined, key, x, f"{place}[{key!r}]")


def one_collection(state: Any, known: Collection[str], /) -> Any:
    """Flax' variables ``{"params": …, "batch_stats": …}`` as one dict.

    Args:
        state: the variables, or anything else, which is kept.
        known: the collections in which the layers of a model keep something.

    Raises:
        ValueError: there are arrays in others, or two have an entry of one name.
    """
    if not isinstance(state, Mapping) or "params" not in state:
        return state
    others = [name for name, x in state.items() if name not in known and holds_arrays(x)]
    if others:
        raise ValueError(
            f"the flax state has arrays in {', '.join(map(repr, others))} beside 'params', where no layer of "
            "the model keeps any; leave them out, or give what you mean as {'params': …}"
        )
    merged: dict[str, Any] = {}
    for name, collection in state.items():
        if name in known:
            _join(merged, "", collection, "")
    return merged[""]
