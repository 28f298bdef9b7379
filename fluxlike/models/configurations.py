"""Configurations of models: data, by depth or by name."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, TypeVar

__all__ = ["as_tuple", "configuration", "require_counts", "round_channels"]

K = TypeVar("K", bound=Hashable)
C = TypeVar("C")


def configuration(family: str, table: Mapping[K, C], which: K | C) -> C:
    """A configuration of a family: that of a depth or name, or the one that is given.

    Args:
        family: the model's name, for the error.
        table: the published configurations.
        which: a key of the table, or a configuration.

    Raises:
        ValueError: there is no such depth or name.
        TypeError: it is neither; a configuration of another family is none of this one.

    Example:
        >>> configuration("ResNet", {18: (2, 2, 2, 2)}, 18)
        (2, 2, 2, 2)
    """
    kind = type(next(iter(table.values())))
    if type(which) is kind:  # a relation's has other fields, which would be ignored
        return which
    known = ", ".join(map(repr, table))
    try:
        if is_dataclass(which):
            raise TypeError
        return table[which]  # type: ignore[index]
    except KeyError:
        near = _nearest(which, table) if isinstance(which, str) else None
        hint = "" if near is None else f"; did you mean {near!r}?"
        raise ValueError(f"{family}({which!r}): write one of {known}, or a {kind.__name__}{hint}") from None
    except TypeError:
        raise TypeError(
            f"{family} takes one of {known}, or a {kind.__name__}, found {type(which).__name__}"
        ) from None


def _nearest(which: str, table: Mapping[K, Any]) -> K | None:
    """The key that a text may stand for: in other letters, shortened, or misspelt."""
    keys, text = {str(key).casefold(): key for key in table}, which.casefold()
    near = [name for name in keys if text and name.startswith(text)] or difflib.get_close_matches(
        text, keys, 1
    )
    return keys[near[0]] if near else None


def require_counts(by: str, /, *, shape: tuple[int | None, ...] = (), least: int = 1, **fields: Any) -> None:
    """Refuse numbers of layers, channels and the like that are none.

    Args:
        by: what has the fields, for the error.
        shape: how long tuples of such numbers are, and tuples of tuples; None for any length but 0.
            (default: (), a number itself)
        least: the smallest that is allowed. (default: 1)
        fields: what to look at.

    Raises:
        ValueError: one is not of this shape, or not made of such numbers.

    Example:
        >>> require_counts("VGGConfig", shape=(None, 2), stages=((1, 64), (2, 0)))
        Traceback (most recent call last):
        ValueError: VGGConfig(stages=((1, 64), (2, 0))): write a tuple of tuples of 2 whole numbers of ...
    """
    for name, value in fields.items():
        if not _counts(value, shape, least):
            raise ValueError(f"{by}({name}={value!r}): write {_words(shape, least)}")


def as_tuple(value: Any) -> Any:
    """A sequence as a tuple, so that `require_counts` takes a list too; what is none as it is."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


def _counts(value: Any, shape: tuple[int | None, ...], least: int) -> bool:
    if not shape:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least
    fits = isinstance(value, tuple) and len(value) > 0 and shape[0] in (None, len(value))
    return fits and all(_counts(part, shape[1:], least) for part in value)


def _words(shape: tuple[int | None, ...], least: int) -> str:
    if not shape:
        return f"a whole number of at least {least}"
    tuples = "".join("tuples of " if n is None else f"tuples of {n} " for n in shape[1:])
    first = "a tuple of " if shape[0] is None else f"a tuple of {shape[0]} "
    example: Any = least
    for n in reversed(shape):
        example = (example,) * (n or 2)
    return f"{first}{tuples}whole numbers of at least {least}, such as {example}"


def round_channels(channels: float, divisor: int = 8, *, lowest: float = 0.0) -> int:
    """A number of channels that `divisor` divides: the nearest.

    Args:
        channels: how many there would be.
        divisor: what divides the result. (default: 8)
        lowest: the share of `channels` below which the result is one step more. (default: 0)

    Example:
        >>> round_channels(35), round_channels(3), round_channels(11), round_channels(11, lowest=0.9)
        (32, 8, 8, 16)
    """
    nearest = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < lowest * channels else nearest
