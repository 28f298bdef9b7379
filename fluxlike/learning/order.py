"""The order of callbacks at each event, from what they read and write: computed once."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from itertools import combinations

from fluxlike.learning.callback import DECLARED, EVERYTHING, Callback, innermost
from fluxlike.learning.events import Event

__all__ = ["names", "ordered"]

_BY_CLASS = 2


def names(callbacks: Sequence[Callback], /) -> list[str]:
    """A name for each callback: its own, numbered where several have it."""
    found: list[str] = []
    for callback in callbacks:
        n, name = 1, callback.name
        while name in found:
            n += 1
            name = f"{callback.name} {n}"
        found.append(name)
    return found


def ordered(callbacks: Sequence[Callback], /) -> dict[Event, list[int]]:
    """Which callbacks an event calls, in order.

    Returns:
        For each event, places in `callbacks`: who writes comes before who reads, otherwise as given.

    Raises:
        TypeError: something that is no Callback, or an unknown part.
        ValueError: two write the same part, or an order in a circle.
    """
    for callback in callbacks:
        _check(callback)
    known = names(callbacks)
    return {event: _order(event, callbacks, known) for event in Event}


def _check(callback: Callback) -> None:
    if not isinstance(callback, Callback):
        write = f"{callback.__name__}()" if isinstance(callback, type) else "a subclass of fl.Callback"
        raise TypeError(f"callbacks holds {callback!r}, which is no callback; write {write}")
    name = callback.name
    for kind in ("reads", "writes"):
        declared = getattr(callback, kind)
        if isinstance(declared, str):
            raise TypeError(f"{name}.{kind} is the string {declared!r}; write a tuple, ({declared!r},)")
        allowed = (*DECLARED, EVERYTHING) if kind == "reads" else DECLARED
        for part in declared:
            if part.split(".")[0] not in allowed:
                raise ValueError(f"{name}.{kind} names {part!r}; the parts of a run are {', '.join(allowed)}")
    for kind in ("after", "before"):
        for cls in getattr(callback, kind):
            if not isinstance(cls, type):
                raise TypeError(
                    f"{name}.{kind} holds {cls!r}; write classes, {kind} = (fl.callbacks.Recorder,)"
                )
    known = {event.value for event in Event}
    for attribute in {*dir(type(callback))} - {*dir(Callback)} - known:
        if attribute.startswith("_"):
            continue
        meant = attribute.removeprefix("on_")
        close = [meant] if meant in known else get_close_matches(meant, known, 1, cutoff=0.85)
        if close and callable(getattr(type(callback), attribute)):
            raise TypeError(f"{name} has a method {attribute}, which nothing calls; name it {close[0]}")
    if not any(hasattr(callback, event) for event in known):
        events = ", ".join(event.value for event in Event)
        raise TypeError(f"{name} listens to no event; write a method of the name of one: {events}")


def _order(event: Event, callbacks: Sequence[Callback], known: list[str]) -> list[int]:
    here = [i for i, callback in enumerate(callbacks) if hasattr(callback, event.value)]
    sorter: TopologicalSorter[int] = TopologicalSorter(dict.fromkeys(here, ()))
    for a, b in combinations(here, 2):
        first, second = callbacks[a], callbacks[b]
        forth, back = _named(first, second), _named(second, first)
        if forth != back or forth == _BY_CLASS:
            if forth >= back:
                sorter.add(b, a)
            if back >= forth:
                sorter.add(a, b)
        else:
            clash = _common(first.writes, second.writes)
            if clash:
                one, other = type(innermost(first)).__name__, type(innermost(second)).__name__
                advice = f"say who comes first: after = ({one},) in the class {other}, or leave one out"
                if one == other:
                    advice = "make one of them, or leave one out"
                elif "_" in (one[0], other[0]):  # of ours, and not to be changed
                    advice = "leave one out"
                raise ValueError(f"{known[a]} and {known[b]} both write {clash!r} at {event.value}; {advice}")
            if _reads(second, first):
                sorter.add(b, a)
            if _reads(first, second):
                sorter.add(a, b)
    try:
        return _stable(sorter)
    except CycleError as error:
        circle = " before ".join(known[i] for i in error.args[1])
        raise ValueError(
            f"at {event.value}, callbacks wait for each other in a circle: {circle}; each reads what the "
            "other writes. Say who comes first by `after` or `before` in one of the classes"
        ) from None


def _named(first: Callback, second: Callback) -> int:
    """Whether one of two says that the first comes first, and how: it names all callbacks, or its class."""
    inner, outer = innermost(first), innermost(second)
    found = [c for c in second.after if isinstance(inner, c)] + [
        c for c in first.before if isinstance(outer, c)
    ]
    return 0 if not found else 1 if all(c is Callback for c in found) else _BY_CLASS


def _reads(reader: Callback, writer: Callback) -> bool:
    if EVERYTHING in reader.reads:
        return EVERYTHING not in writer.reads
    return _common(reader.reads, writer.writes) is not None


def _common(some: Sequence[str], others: Sequence[str]) -> str | None:
    """A part of both: ``state`` is in common with ``state.lr``, which is not with ``state.momentum``."""
    for a in some:
        for b in others:
            if a == b or a.startswith(f"{b}.") or b.startswith(f"{a}."):
                return max(a, b, key=len)
    return None


def _stable(sorter: TopologicalSorter[int]) -> list[int]:
    """The order that keeps the given one where nothing forbids that."""
    sorter.prepare()
    ready: list[int] = []
    order = []
    while sorter.is_active():
        ready = sorted({*ready, *sorter.get_ready()})
        order.append(ready.pop(0))
        sorter.done(order[-1])
    return order
