"""The keys of a section in TOML: what each takes, and errors that say what to write instead."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

from fluxlike.files.printing import shown

__all__ = [
    "Key", "Reader", "choice", "each", "nearest", "number", "path", "section", "share_or_path", "text",
    "truth", "whole",
]  # fmt: skip

S = TypeVar("S")

_REFUSED = object()


class Reader(NamedTuple):
    """What a key takes.

    Attributes:
        expects: in words, such as "a whole number of at least 1".
        read: the value of a setting from that in the file and the file's folder, or `_REFUSED`.
    """

    expects: str
    read: Callable[[Any, Path], Any]


class Key(NamedTuple):
    """What is known of a key: a field of a section is ``Annotated[type, Key(…)]``.

    Attributes:
        reader: what it takes.
        about: what it is for, in a few words.
    """

    reader: Reader
    about: str


def section(cls: type[S], name: str, found: Mapping[str, Any], folder: Path, others: Iterable[str], /) -> S:
    """A section read from its table.

    Args:
        cls: the dataclass of the section; a key without a default must stand in the file.
        name: of the section.
        found: its table.
        folder: where relative paths start.
        others: every key of any section, to be told where one is misplaced: ``"[training] lr"``.

    Raises:
        ValueError: a key that is missing, not known, or of another value than it takes.
    """
    hints = get_type_hints(cls, include_extras=True)
    defaults = {f.name: f.default for f in fields(cls)}  # type: ignore[arg-type]
    known: dict[str, Key] = {wanted: hints[wanted].__metadata__[0] for wanted in defaults}
    for given in found:
        if given not in known:
            raise ValueError(_unknown(name, given, found, list(known), others))
    values = {}
    for wanted, about in known.items():
        default = defaults[wanted]
        if wanted in found:
            values[wanted] = _value(name, wanted, about, found[wanted], folder)
        elif default is MISSING:
            raise ValueError(f"[{name}] lacks {wanted}, {about.about}; expected {about.reader.expects}")
        elif isinstance(default, Path):
            values[wanted] = folder / default
    return cls(**values)


def _unknown(name: str, given: str, found: Mapping[str, Any], known: list[str], others: Iterable[str]) -> str:
    close = nearest(given, known)
    if close:
        hint = f"did you mean {close}?"
    else:
        elsewhere = [other for other in others if other.partition("] ")[2] == given]
        hint = f"there is {' and '.join(elsewhere)};" if elsewhere else ""
    kind = f" of kind {shown(found['kind'])}" if "kind" in found else ""
    said = f"[{name}]{kind} has no key {shown(given)}; {hint}".rstrip("; ")
    return f"{said}{'' if said.endswith('?') else ';'} its keys are {', '.join(known)}"


def nearest(given: str, known: Iterable[str], /) -> str | None:
    """What was probably meant."""
    lower = {name.lower().replace("-", "_"): name for name in known}
    close = difflib.get_close_matches(given.lower().replace("-", "_"), lower, n=1)
    return lower[close[0]] if close else None


def _value(name: str, wanted: str, about: Key, found: Any, folder: Path) -> Any:
    value = about.reader.read(found, folder)
    if value is _REFUSED:
        raise ValueError(
            f"[{name}] {wanted} is {_printed(found)}; expected {about.reader.expects}: {about.about}"
        )
    return value


_KINDS = {str: "a string", bool: "a truth value", int: "a whole number", float: "a number", list: "a list"}


def _printed(found: Any) -> str:
    text = str(found).lower() if isinstance(found, bool) else shown(found)
    return f"{text} ({_KINDS.get(type(found), 'a ' + type(found).__name__)})"


def _reader(expects: str, fits: Callable[[Any], bool], turn: Callable[[Any], Any] = lambda x: x) -> Reader:
    return Reader(expects, lambda found, _: turn(found) if fits(found) else _REFUSED)


def whole(at_least: int, /) -> Reader:
    """A whole number."""
    return _reader(f"a whole number of at least {at_least}", lambda x: type(x) is int and x >= at_least)


def number(*, above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf) -> Reader:
    """A finite number within bounds."""
    bounds = [f"above {above:g}"] if above > -math.inf else []
    bounds += [f"of at least {at_least:g}"] if at_least > -math.inf else []
    bounds += [f"below {below:g}"] if below < math.inf else []

    def fits(x: Any) -> bool:
        return type(x) in (int, float) and above < x < below and at_least <= x

    return _reader(f"a number {' and '.join(bounds)}".rstrip(), fits, float)


def truth() -> Reader:
    """True or false."""
    return _reader("true or false", lambda x: type(x) is bool)


def text(expects: str = "a text in quotes", /, fits: Callable[[str], bool] = bool) -> Reader:
    """A text, not empty."""
    return _reader(expects, lambda x: isinstance(x, str) and fits(x))


def choice(*names: str) -> Reader:
    """One of some texts."""
    given = [f'"{name}"' for name in names]
    expects = given[0] if len(given) == 1 else f"{', '.join(given[:-1])} or {given[-1]}"
    return _reader(expects, lambda x: isinstance(x, str) and x in names)


def each(one: Reader, /, expects: str) -> Reader:
    """A list of what another reader takes, as a tuple."""

    def read(found: Any, folder: Path) -> Any:
        if not isinstance(found, list):
            return _REFUSED
        values = tuple(one.read(x, folder) for x in found)
        return _REFUSED if any(value is _REFUSED for value in values) else values

    return Reader(expects, read)


def path(expects: str = "a path in quotes", /) -> Reader:
    """A path; a relative one starts at the folder of the file."""

    def read(found: Any, folder: Path) -> Any:
        fits = isinstance(found, str) and found and "\0" not in found
        return folder / Path(found).expanduser() if fits else _REFUSED

    return Reader(expects, read)


def share_or_path() -> Reader:
    """A share above 0 and below 1, or a path."""
    share, place = number(above=0, below=1), path()

    def read(found: Any, folder: Path) -> Any:
        return (place if isinstance(found, str) else share).read(found, folder)

    return Reader("a share above 0 and below 1, or a path in quotes", read)
