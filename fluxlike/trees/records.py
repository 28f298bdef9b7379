"""What files say of objects, and what checkpoints may lack: open tables, by class."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

__all__ = [
    "is_printable", "may_lack", "names_it_may_lack", "plain_settings", "says_settings", "settings_of",
]  # fmt: skip

_settings: dict[type, Callable[[Any], Mapping[str, str]]] = {}
_lacking: dict[type, Callable[[Any], Collection[str]]] = {}


def says_settings(cls: type, settings: Callable[[Any], Mapping[str, str]], /) -> None:
    """Have files say the settings of the objects of a class that ride along in a node.

    A file that says other settings than the model has is not loaded: the same weights would be another
    network.

    Args:
        cls: the class; its subclasses follow it.
        settings: a function from the object to its settings in print, by name; `plain_settings` prints
            them. Settings that tell nothing of what is computed are to be left out.

    Raises:
        ValueError: the class has such a function already.
    """
    _register("says_settings", _settings, cls, settings)


def settings_of(x: Any, /) -> dict[str, str]:
    """What an object says of its settings, by the nearest class in the table; none for others."""
    found = _nearest(_settings, x)
    return {} if found is None else dict(found(x))


def may_lack(cls: type, names: Callable[[Any], Collection[str]], /) -> None:
    """Let checkpoints leave out some children of the nodes of a class, which then keep their own values.

    Args:
        cls: the class; its subclasses follow it.
        names: a function from a node to the names of these children.

    Raises:
        ValueError: the class has such a function already.
    """
    _register("may_lack", _lacking, cls, names)


def names_it_may_lack(node: Any, /) -> Collection[str]:
    """The children of a node that a checkpoint may leave out, by the nearest class in the table."""
    found = _nearest(_lacking, node)
    return () if found is None else found(node)


def plain_settings(attributes: Mapping[str, Any], /) -> dict[str, str]:
    """Those attributes in print that are None, bools, numbers, strings, or tuples and lists of these."""
    return {name: repr(x) for name, x in attributes.items() if is_printable(x)}


def is_printable(x: Any, /) -> bool:
    """Whether a value is None, a bool, a number, a string, or a tuple or list of these."""
    if isinstance(x, (tuple, list)):
        return all(map(is_printable, x))
    return x is None or isinstance(x, (bool, int, float, str))


def _register(name: str, table: dict[type, Any], cls: type, function: Callable[[Any], Any]) -> None:
    known = table.setdefault(cls, function)
    if known is not function:
        raise ValueError(
            f"{name}({cls.__qualname__}): it was said already, by {known!r}; say it once of a class, or of a "
            "subclass, which comes before it"
        )


def _nearest(table: dict[type, Callable[[Any], Any]], x: Any) -> Callable[[Any], Any] | None:
    return next((table[cls] for cls in type(x).__mro__ if cls in table), None)
