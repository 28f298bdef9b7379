"""Rename rules: how the names in a checkpoint become places in a model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from fluxlike.files.printing import shown
from fluxlike.trees.paths import dotted

__all__ = ["Rename", "plain_name", "renamed"]

#: Places by place, patterns with their replacements, or a function; None drops a name.
Rename = (
    Mapping[str, str | None]
    | Sequence[tuple[str | re.Pattern[str], str | None]]
    | Callable[[str], str | None]
    | None
)


def renamed(names: Iterable[str], rename: Rename, /) -> dict[str, str | None]:
    """What each name becomes, in dots; None where it is dropped.

    Raises:
        ValueError: a rule that fits no name, or two names that become one.
        TypeError: the rules are of no known form.
    """
    names = list(names)
    if rename is None:
        found: dict[str, str | None] = {name: plain_name(name) for name in names}
    elif isinstance(rename, Mapping):
        found = _by_place(names, rename)
    elif callable(rename):
        found = {name: _result(rename(name), name) for name in names}
    elif isinstance(rename, Sequence) and not isinstance(rename, str):
        found = _by_pattern(names, rename)
    else:
        raise TypeError(_forms(rename))
    _require_apart(found)
    return found


def plain_name(name: str, /) -> str:
    """A name in dots, which may be written as one of our paths."""
    return dotted(name) if name[:1] in (".", "[") else name


def _by_place(names: list[str], rules: Mapping[str, str | None]) -> dict[str, str | None]:
    """A rule is for a place and all below it; of several that fit, the longest counts."""
    if not all(isinstance(a, str) and (b is None or isinstance(b, str)) for a, b in rules.items()):
        raise TypeError(_forms(rules))
    plain: dict[str, tuple[str, str | None]] = {}
    for old, new in rules.items():
        other, _ = plain.setdefault(plain_name(old), (old, new))
        if other != old:
            raise ValueError(f"rename has two rules for one place, {other!r} and {old!r}; leave one out")
    deepest = max((old.count(".") + 1 for old in plain), default=0)
    unused = dict.fromkeys(rules)
    found: dict[str, str | None] = {}
    for name in names:
        parts = plain_name(name).split(".")
        fits = (n for n in range(min(len(parts), deepest), -1, -1) if ".".join(parts[:n]) in plain)
        n = next(fits, None)
        if n is None:
            found[name] = ".".join(parts)
            continue
        old, new = plain[".".join(parts[:n])]
        unused.pop(old, None)
        kept = [] if new is None else [plain_name(new)]
        found[name] = None if new is None else ".".join(part for part in (*kept, *parts[n:]) if part)
    for old in unused:
        near = difflib.get_close_matches(old, _heads(names), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"rename has a rule for {old!r}, and no name of the checkpoint is there{hint}")
    return found


def _heads(names: list[str]) -> list[str]:
    """The places that some names tell of."""
    heads: dict[str, None] = {}
    for name in names[:300]:
        parts = name[:200].split(".")
        heads.update(dict.fromkeys(".".join(parts[:n]) for n in range(1, len(parts) + 1)))
    return list(heads)


def _by_pattern(
    names: list[str], rules: Sequence[tuple[str | re.Pattern[str], str | None]]
) -> dict[str, str | None]:
    """Every rule is applied, in order, to what those before it made of a name."""
    found: dict[str, str | None] = {name: plain_name(name) for name in names}
    for rule in rules:
        if not isinstance(rule, (tuple, list)) or len(rule) != 2:
            raise TypeError(_forms(rules))
        changed = _replaced(found, *rule)
        if not changed:
            raise ValueError(
                f"rename has the pattern {_text(rule[0])!r}, which no name of the checkpoint fits"
            )
        found |= changed
    return {name: _result(now, name) for name, now in found.items()}


def _replaced(
    found: dict[str, str | None], pattern: str | re.Pattern[str], new: str | None
) -> dict[str, str | None]:
    """What a rule makes of the names that its pattern fits."""
    try:
        compiled = re.compile(pattern)
        hits = {name: now for name, now in found.items() if now is not None and compiled.search(now)}
        return {name: None if new is None else compiled.sub(new, now) for name, now in hits.items()}
    except (re.error, IndexError) as error:
        raise ValueError(
            f"rename has the rule ({_text(pattern)!r}, {new!r}), which re.sub can't apply: {error}"
        ) from error


def _text(pattern: str | re.Pattern[str]) -> str:
    return pattern.pattern if isinstance(pattern, re.Pattern) else pattern


def _result(new: object, name: str) -> str | None:
    if new is not None and not isinstance(new, str):
        raise TypeError(
            f"rename made a {type(new).__name__} of {shown(name)}; return a name, or None to drop it"
        )
    return None if new is None else plain_name(new)


def _require_apart(found: dict[str, str | None]) -> None:
    first: dict[str, str] = {}
    for name, new in found.items():
        if new is not None and first.setdefault(new, name) != name:
            raise ValueError(
                f"{shown(first[new])} and {shown(name)} of the checkpoint both become {shown(new)}; drop one "
                f"by rename={{{shown(name)}: None}}"
            )


def _forms(rename: object) -> str:
    return (
        f"rename is a {type(rename).__name__} of another form than a dict {{'old': 'new'}}, a list of pairs "
        "(pattern, replacement) or a function of the name; None instead of a new name drops the old one"
    )
